"""Plugins of OpenCLIP as installed distributions."""


def install_plugin(folder, name, source):
    """Writes a plugin with the metadata of an installed distribution; the folder has to be on sys.path."""
    (folder / f"{name}_module.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[open_clip]\n{name} = {name}_module\n")
