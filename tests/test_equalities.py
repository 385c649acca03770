"""Runs that must be equal: flag absent and stock, two ranks and one, accumulated and whole, resumed and unbroken."""

from conftest import run_ranks, stock_train, superclip_train


def test_without_the_flag_the_launcher_trains_as_stock_openclip_to_the_last_digit(train_flags, tmp_path):
    (ours,) = run_ranks(superclip_train, *train_flags, "--name", "ours", cwd=tmp_path)
    (stock,) = run_ranks(stock_train, *train_flags, "--name", "stock", cwd=tmp_path)
    assert ours.returncode == stock.returncode == 0
    assert len(stock.losses()) == 4
    assert ours.losses() == stock.losses()
