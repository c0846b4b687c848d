"""Mutated files are answered rightly or refused with a sentence."""

import random

import pytest
import requests
from hypothesis import given, settings

from client.local import LocalServer
from tests.support.clients import assert_sane
from tests.support.mutations import QUIET, assert_answered, files, mutate, seeds


@pytest.mark.parametrize("original", [pytest.param(f, id=str(i)) for i, f in enumerate(files())])
def test_mutated_files(server: LocalServer, original: bytes) -> None:
    with requests.Session() as session:
        url = f"{server.url}/v2/models/tinyvit/classify"

        @settings(QUIET, max_examples=60)
        @given(seeds)
        def check(seed: int) -> None:
            data = mutate(original, random.Random(seed))
            assert_answered(session.post(url, data=data, timeout=60))

        check()
    assert_sane(server)
