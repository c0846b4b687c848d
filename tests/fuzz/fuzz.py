"""Fuzz one target with libFuzzer through atheris: `fuzz.py TARGET [libFuzzer's options]`.

`make fuzz MINUTES=30` runs each target for 30 minutes. It keeps its corpus and findings in
`.fuzz/`.
"""

import logging
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tinyvit")]

with atheris.instrument_imports(include=["mlserver_timm", "PIL"]):
    from tests.support.fuzz_targets import TARGETS

OPTIONS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192", "-print_final_stats=1"]
"""Limits: seconds for one input, MB of memory, bytes of input."""


def main() -> None:
    name, *options = sys.argv[1:]
    target, seeds = TARGETS[name]
    corpus = ROOT / ".fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    logging.disable()
    findings = f"-artifact_prefix={corpus.parent}/{name}-"
    atheris.Setup([sys.argv[0], *OPTIONS, findings, *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
