"""Fifteen lines of FastAPI: a JPEG as the body, a pool of two threads a stream.

python server.py EXPORTED_FOLDER PORT

PYTHONPATH has the folder of classifier.py.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from classifier import CORES, WORKERS, Classifier
from fastapi import FastAPI, Request

app = FastAPI()
classifier = Classifier(sys.argv[1], streams=WORKERS, threads=CORES)
pool = ThreadPoolExecutor(2 * WORKERS)


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/classify")
async def classify(request: Request) -> list[str]:
    jpeg = await request.body()
    return await asyncio.get_running_loop().run_in_executor(pool, classifier, jpeg)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False)
