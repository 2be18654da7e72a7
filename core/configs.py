"""Where the packaged studies lie: beside the packages in an installed wheel, at the repository root otherwise."""

from __future__ import annotations

from pathlib import Path

from core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def configs(app: str) -> list[tuple[str, Path]]:
    """Name and path of every packaged study of ``app``, sorted by name."""
    for folder in (ROOT / "apps" / "configs" / app, ROOT / "configs" / app):
        if folder.is_dir():
            return [(path.stem, path) for path in sorted(folder.glob("*.yaml"))]
    return []


def find_config(app: str, config: str | Path) -> Path:
    """The file that ``config`` means: an existing path, else the name of a packaged study of ``app``.

    Raises:
        InputError: neither exists; the message lists the packaged studies.
    """
    if Path(config).is_file():
        return Path(config)
    packaged = dict(configs(app))
    name = str(config).removesuffix(".yaml")
    if name in packaged:
        return packaged[name]
    raise InputError(f"{config}: no such file; packaged studies of {app}: {', '.join(packaged) or 'none'}")
