"""`--stage`: which shards a node copies, when, and what of an earlier start
it takes."""

import os
import shutil
from pathlib import Path

import pytest
from support import cases, input_error, refusals
from support.slurm_cluster import wait_until
from support.tiny_run import SLICES, write_recipe
from support.training_runs import failure

from openclip_superclip.data.shard_order import slice_of
from openclip_superclip.data.tar_shards import expand
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.plans.run import Settings
from openclip_superclip.runs import progress
from openclip_superclip.runs.folder import RunFolder
from openclip_superclip.runs.launcher import NodeTraining
from openclip_superclip.runs.slurm import Placement
from openclip_superclip.runs.staging import Staging


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    recipe = read_recipe(str(write_recipe(tmp_path_factory.mktemp("staging"))))
    return {nodes: make_run(recipe, nodes, 2, device="cpu") for nodes in (1, 2)}


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def staging(plan, disk, node=0):
    return Staging(plan, Placement(plan.nodes, node), RunFolder(disk.parent / "run"), str(disk))


def shards_of(plan, epoch):
    names = expand(plan.data)
    return [names[index] for index in slice_of(len(names), SLICES, plan.recipe.seed, epoch)]


def wait_for(disk, shards):
    """Returns once the disk holds copies of exactly these shards."""
    names = {os.path.basename(shard) for shard in shards}
    wait_until(lambda: {path.name for path in disk.rglob("*.tar")} == names, 30, "the copies")


def test_each_node_copies_what_its_own_ranks_read(plans, disk):
    plan = plans[2]
    for epoch in range(plan.num_slices):
        shards = shards_of(plan, epoch)
        for node in range(2):
            ours = staging(plan, disk, node)._shards(epoch)
            # as OpenCLIP deals them
            assert sorted(ours) == sorted(shards[2 * node :: 4] + shards[2 * node + 1 :: 4])
    assert staging(plan, disk)._shards(plan.num_slices) == []


def test_copies_of_a_start_that_was_killed_are_removed(plans, disk):
    plan = plans[1]
    ours = staging(plan, disk)
    cut, past = (ours.copy_of(shards_of(plan, epoch)[0]) for epoch in (0, 2))
    cut.parent.mkdir(parents=True)
    for copy in (cut, past, past.with_name("x.tar.part")):
        copy.write_bytes(b"half a shard")
    with ours:
        wait_for(disk, shards_of(plan, 0) + shards_of(plan, 1))
        assert cut.read_bytes() == Path(shards_of(plan, 0)[0]).read_bytes()
        assert not list(disk.rglob("*.part"))


def test_a_shard_that_cannot_be_copied_is_reported_and_read_from_its_place(
    plans, disk, tmp_path, capsys
):
    plan = plans[1]
    lost = shards_of(plan, 0)[1]
    os.rename(lost, tmp_path / "lost")
    try:
        with staging(plan, disk) as ours:
            wait_until(ours.first.is_set, 30, "the first slice")
            wait_for(
                disk, [shard for shard in shards_of(plan, 0) + shards_of(plan, 1) if shard != lost]
            )
            assert [read["url"] for read in ours.shards([{"url": lost}])] == [lost]
    finally:
        os.rename(tmp_path / "lost", lost)
    said = (
        f"--stage: {lost} is read from its original path, because copying failed (No such "
        "file or directory); others"
    )
    assert capsys.readouterr().err.startswith(f"superclip run: {said}")


def test_a_disk_that_is_not_there_or_too_small_is_refused(plans, disk, monkeypatch):
    with input_error(r"--stage is .*NOWHERE.*; expected a folder there that can be"):
        staging(plans[1], Path("$NOWHERE/x")).__enter__()
    usage = shutil.disk_usage(disk)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    too_small = input_error(r"has 1 kB free, and two slices of its ranks' shards take")
    with too_small, staging(plans[1], disk):
        pass
    assert not list(disk.iterdir())


@cases("data, said", refusals("staging"))
def test_data_that_cannot_be_copied_is_refused(data, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").write_text("filepath\ttitle\n" + "x.png\ta\n" * 64)
    recipe = str(write_recipe(tmp_path))
    for command in ("run --dry-run", "submit --dry-run --gpus-per-node 1"):
        flags = f"{recipe} --device cpu --data '{data}' --stage /tmp"
        assert said in failure(f"{command} {flags}")


def test_copying_the_first_slice_is_not_a_stall(disk, tmp_path, monkeypatch):
    recipe = read_recipe(str(write_recipe(tmp_path)))
    plan = make_run(recipe, device="cpu", settings=Settings(stage=str(disk)))
    slow = Path(shards_of(plan, 0)[0])
    slow.unlink()
    os.mkfifo(slow)  # its copying waits for a writer
    training = NodeTraining(plan, Placement(), RunFolder(tmp_path / "run"))
    monkeypatch.setattr(progress, "STACKS", -60 * progress.FIRST_STEP)

    def each_second():
        if training.staging.first.is_set():
            raise StopIteration
        assert not training.progress.has_stalled(1e-9)
        if slow.is_fifo():
            slow.write_bytes(b"")
            slow.unlink()

    training._each_second = each_second
    with pytest.raises(StopIteration):
        training._run_ranks()
