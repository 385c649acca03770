"""What averages the gradients of a run's ranks: torch.distributed, or Horovod."""

ENGINES = ("torchrun", "horovod")


def engine_flags(engine: str, arguments: list[str]) -> list[str]:
    """Returns what an engine adds to the arguments of `superclip train`; InputError where it cannot train with them.

    The launcher starts Horovod's ranks as it does torch.distributed's: it reaches every node without ssh or MPI and
    sees a rank fail.
    """
    if engine == "torchrun":
        return []
    from ..distributed.horovod_fixes import refuse_broken
    from ..integration.command_check import check_command

    refuse_broken(vars(check_command(arguments)))
    return ["--horovod"]
