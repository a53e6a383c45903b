"""Helpers of the tests of evaluate.py: a small set, a run on it, and readers of its files."""

import json
from pathlib import Path

import evaluate
from data import twoshapes_qa
from tests.settings import changed, configure

COUNT = 15  # questions, three of each sub-task


def generated(folder):
    """Generate a small set in `folder` and return its data root."""
    twoshapes_qa.generate(folder / "set", COUNT, seed=5)
    return str(folder / "set")


def settings(data_root):
    return configure(evaluate, dataset="blink", data_root=data_root, device="cpu", batch_size=5, max_new_tokens=6)


def run(config, folder):
    """Run an evaluation that must succeed and return its rows."""
    assert evaluate.main(changed(config, out_dir=str(folder))) == 0
    return rows(folder)


def predictions(folder):
    return (Path(folder) / "predictions.jsonl").read_bytes()


def rows(folder):
    return [json.loads(line) for line in predictions(folder).splitlines()]


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def lines_of_parts(folder):
    return sorted(line for path in (folder / "parts").iterdir() for line in path.read_bytes().splitlines())


RUNNER = """
import os

class Runner:
    def __init__(self, answer):
        self.answer = answer

    def generate(self, prompt, images, **settings):
        return self.answer(prompt, images, settings)

"""
