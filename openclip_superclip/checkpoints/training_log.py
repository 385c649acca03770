"""OpenCLIP's out.log as points: samples seen, losses, speed."""

import re
from pathlib import Path

STEP = re.compile(r"Train Epoch: (\d+) \[\s*(\d+)/(\d+) ")
LOSS = re.compile(r"(\w*[Ll]oss): ([\d.e+-]+|nan|-?inf) \(")
SPEED = re.compile(r"([\d.e+-]+)/s, ")
LAST_OF_A_STEP = re.compile(r"\bLoss: \S+ \([^)]*\)\s*$")  # OpenCLIP writes the total last


def read_log(log: Path) -> list[dict]:
    """Returns the points of a run's curve: samples seen in all, samples of an epoch, every loss, samples a second.

    Steps that were trained again, by a run that went on from an earlier checkpoint, count as they were last. A line
    that a crash has cut is left out.
    """
    points = []
    for line in log.read_text(errors="replace").splitlines():
        step = STEP.search(line)
        if not (step and LAST_OF_A_STEP.search(line)):
            continue
        epoch, seen, of_epoch = map(int, step.groups())
        samples = epoch * of_epoch + seen
        while points and points[-1]["samples"] >= samples:
            points.pop()
        speed = SPEED.search(line)
        losses = {name.lower(): float(value) for name, value in LOSS.findall(line)}
        points.append({
            "samples": samples, **losses, "epoch_samples": of_epoch,
            "samples_per_second": float(speed[1]) if speed else None,
        })  # fmt: skip
    return points
