"""The dashboard's own queries, asked of a live Prometheus under load; writes imgs/dashboard.png.

One server with the sample checkpoint, scraped each second while the load changes: one client, then
eight, then more than the queue takes, and some whose pictures are none.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import requests
import yaml
from inputs import ROOT

sys.path.insert(0, str(ROOT / "client"))

from client.local import LocalServer, free_ports, serving

DEPLOY = ROOT / "deploy"
PICTURE = ROOT / "imgs" / "dashboard.png"
PHASES = ((1, 20.0), (8, 25.0), (24, 25.0))
"""Clients, and for how many seconds; the last are more than MAX_QUEUE."""
MAX_QUEUE = 16
RATE_INTERVAL = "5s"

Series = dict[str, tuple[list[float], list[float]]]
"""Times and values, by the legend."""


@contextlib.contextmanager
def prometheus(server: LocalServer, folder: Path) -> Iterator[str]:
    """The shipped configuration, scraping this server each second; gives the URL."""
    (port,) = free_ports(1)
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(DEPLOY / "alerts.yml")]
    job = configuration["scrape_configs"][0]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.metrics_port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def load(server: LocalServer, clients: int, seconds: float) -> None:
    """So many clients, each asking again once answered; each tenth time they send no picture."""
    until = time.monotonic() + seconds
    picture = (ROOT / "imgs" / "cat.jpg").read_bytes()

    def ask() -> None:
        with requests.Session() as session:
            turn = 0
            while time.monotonic() < until:
                turn += 1
                body = picture if turn % 10 else b"no picture"
                url = f"{server.url}/v2/models/tinyvit/classify"
                if session.post(url, data=body, timeout=60).status_code == 503:
                    time.sleep(0.1)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answers(url: str, target: dict[str, Any], start: float, end: float) -> Series:
    """What Prometheus has for one target of a panel, each second."""
    query = target["expr"].replace("$job", "tinyvit").replace("$__rate_interval", RATE_INTERVAL)
    parameters: dict[str, Any] = {"query": query, "start": start, "end": end, "step": 1}
    answer = requests.get(f"{url}/api/v1/query_range", params=parameters, timeout=10).json()
    series: Series = {}
    for result in answer["data"]["result"]:
        legend = target["legendFormat"]
        for name, value in result["metric"].items():
            legend = legend.replace(f"{{{{{name}}}}}", value)
        times, values = zip(*result["values"], strict=True)
        series[legend] = ([at - start for at in times], [float(value) for value in values])
    return series


UNITS = {"bytes": (2**-20, "MiB"), "s": (1e3, "ms"), "reqps": (1.0, "a second")}
"""Of Grafana's units, what is drawn instead: a factor and a name."""


def draw(panels: list[tuple[dict[str, Any], Series]]) -> None:
    """The panels where the dashboard has them, in two columns."""
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(12, 11), layout="constrained")
    for axis, (panel, series) in zip(axes.flat, panels, strict=True):
        factor, unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1.0, ""))
        for legend, (times, values) in series.items():
            axis.plot(times, [factor * value for value in values], label=legend, linewidth=1.6)
        axis.set_title(panel["title"], loc="left", fontsize=11, fontweight="bold")
        axis.set_ylabel(unit)
        axis.set_ylim(0, max(1, 1.25 * axis.get_ylim()[1]))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, loc="upper left", frameon=False, ncols=3)
        axis.margins(x=0)
    phases = ", then ".join(f"{clients}" for clients, _ in PHASES)
    for axis in axes[-1]:
        axis.set_xlabel(f"seconds; {phases} clients, queue of {MAX_QUEUE}")
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": name, "TINYVIT_CACHE_DIR": name}
        environment |= {"TINYVIT_MAX_QUEUE": str(MAX_QUEUE), "MLSERVER_METRICS_DIR": name}
        with (
            serving(ROOT / "tinyvit", env=environment, log=folder / "log", cwd=name) as server,
            prometheus(server, folder) as url,
        ):
            load(server, 1, 8)  # longer than RATE_INTERVAL
            start = time.time()
            for clients, seconds in PHASES:
                load(server, clients, seconds)
            end = time.time()
            panels = []
            for panel in dashboard["panels"]:
                series: Series = {}
                for target in panel["targets"]:
                    series |= answers(url, target, start, end)
                panels.append((panel, series))
    draw(panels)
    print(f"Wrote {PICTURE.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
