"""Plugins of OpenCLIP as installed distributions, broken ones too."""


def install_plugin(folder, name, source):
    """Writes a plugin with the metadata of an installed distribution; the folder has to be on sys.path."""
    (folder / f"{name}_module.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[open_clip]\n{name} = {name}_module\n")


BROKEN = {
    "one whose import fails": ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    "one with a syntax error": ("def f(:", "invalid syntax"),
    "one with a long complaint": ("raise ImportError('first line\\n  second line')", "first line second line"),
    "one without words": ("raise ImportError", "ImportError"),
    "one that asks for an unknown hook": (
        "from openclip_superclip.hooks import hookimpl\n@hookimpl\ndef open_clip_no_such_hook(args): ...",
        "unknown hook 'open_clip_no_such_hook'",
    ),
    "one that asks for an unknown argument": (
        "from openclip_superclip.hooks import hookimpl\n@hookimpl\ndef open_clip_create_loss(args, model): ...",
        "model",
    ),
}
