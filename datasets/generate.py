"""Make a data set of the catalogue: python datasets/generate.py burgers --out data

Samples are written to OUT/NAME/SPLIT in parts. A run that was stopped goes on where it was, and several processes share
the work: start the same command with --shard 0/4, 1/4, 2/4 and 3/4, on one machine or on many with a common folder.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).with_name("catalogue.toml")
KEYS = {"about", "problem", "parameters", "grid", "rtol", "splits", "block", "seed", "times", "refine"}


def catalogue() -> dict[str, dict[str, Any]]:
    """The recipes by name.

    Raises:
        ValueError: a recipe has a key that is not known.
    """
    recipes = tomllib.loads(CATALOGUE.read_text())
    for name, recipe in recipes.items():
        unknown = sorted(set(recipe) - KEYS)
        if unknown:
            raise ValueError(
                f"{CATALOGUE.name}: {name} has the key {unknown[0]!r}; known are {', '.join(sorted(KEYS))}."
            )
    return recipes


def as_grid(values: dict[str, Any]) -> Any:
    """A recipe's grid: the arguments of `Grid`, or, with ``kind = "polar"``, those of `Grid.polar`."""
    from opflow import Grid

    arguments = {key: value for key, value in values.items() if key != "kind"}
    return Grid.polar(**arguments) if values.get("kind") == "polar" else Grid(**arguments)


def make(
    recipe: dict[str, Any], folder: Path, split: str, *, shard: tuple[int, int] = (0, 1), device: str = "cpu"
) -> bool:
    """Write this split, or this shard of it, to ``folder/split``; whether it is now complete."""
    from opflow import problems
    from opflow.data import generate

    problem = getattr(problems, recipe["problem"])(**recipe.get("parameters", {}))
    block = recipe.get("block", 32)
    source = generate(
        problem,
        as_grid(recipe["grid"]),
        folder,
        recipe["splits"][split],
        refine=recipe.get("refine", {}).get(split, 1),
        split=split,
        seed=recipe.get("seed", 0),
        shard=shard,
        resume=True,
        block=block,
        samples_per_file=block * max(1, 64 // block),
        times=recipe.get("times"),
        rtol=recipe.get("rtol", 1e-10),
        device=device,
    )
    return source is not None


def as_shard(text: str) -> tuple[int, int]:
    """The text 0/4 as (0, 4)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; i/n with 0 <= i < n is expected, for example 0/4")
    return int(number), int(count)


def main() -> None:
    """The command line."""
    recipes = catalogue()
    listing = "\n".join(f"  {name:22} {recipe['about']}" for name, recipe in recipes.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"data sets:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=recipes, metavar="NAME", help="of the data sets below")
    parser.add_argument("--out", type=Path, default=Path("data"), help="the folder that holds NAME/SPLIT")
    parser.add_argument("--splits", nargs="+", choices=("train", "validation", "test"), metavar="SPLIT", help="all")
    parser.add_argument("--shard", type=as_shard, default=(0, 1), metavar="I/N", help="make only every N-th part")
    parser.add_argument("--device", default="cpu", help="where to solve, for example cuda")
    options = parser.parse_args()
    recipe = recipes[options.name]
    for split in options.splits or recipe["splits"]:
        whole = make(recipe, options.out / options.name, split, shard=options.shard, device=options.device)
        n = recipe["splits"][split]
        print(f"{options.name} {split}: {n} samples" if whole else f"{options.name} {split}: waits for other shards")


if __name__ == "__main__":
    main()
