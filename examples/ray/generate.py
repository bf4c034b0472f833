#!/usr/bin/env python3
"""Texts for a file of prompts, on as many machines as Ray has.

    examples/ray/generate.py prompts.jsonl texts --model gpt2-large --actors 2 --cpus 16 --max-new-tokens 64

Reads JSON lines or Parquet with the columns `id` and `prompt`, and writes a folder of the same kind; `--merge FILE`
then writes one file, sorted by id. A job that was killed goes on where it stopped when it is started again with the
same arguments: finished rows are noted in the folder TARGET.checkpoint, which all machines must reach, as they must
the target.
"""

import argparse
import json
import pathlib

import pyarrow.dataset
import pyarrow.parquet
import ray
import ray.data
from llm_int8.ray import Generator
from ray.data.checkpoint import CheckpointConfig


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a file or folder of .jsonl or .parquet files")
    parser.add_argument("target", type=pathlib.Path, help="the folder to write")
    parser.add_argument("--model", default="tiny-gpt2")
    parser.add_argument("--actors", type=int, default=1, help="one for each machine or NUMA node")
    parser.add_argument("--cpus", type=int, default=1, help="cores of each actor")
    parser.add_argument("--batch", type=int, default=32, help="rows that an actor computes together")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--part", type=int, default=128, help="rows that are written together; a failure repeats the parts in work")
    parser.add_argument("--address", help="of a running cluster; by default one on this machine")
    parser.add_argument("--merge", type=pathlib.Path, help="write all rows into this file, sorted by id")
    return parser.parse_args()


def is_parquet(path):
    path = pathlib.Path(path)
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def generate(args):
    context = ray.data.DataContext.get_current()
    target = args.target.resolve()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(target) + ".checkpoint", delete_checkpoint_on_success=False)

    # Reading and writing need next to nothing.
    light = {"num_cpus": 0.01}
    read = ray.data.read_parquet if is_parquet(args.source) else ray.data.read_json
    rows = read(args.source, **light).repartition(target_num_rows_per_block=args.part)
    rows = rows.map_batches(
        Generator,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_cpus=args.cpus,
        batch_size=args.batch,
        fn_constructor_kwargs=dict(
            model=args.model, seed=args.seed, max_new_tokens=args.max_new_tokens, temperature=args.temperature),
    )
    write = rows.write_parquet if is_parquet(args.source) else rows.write_json
    write(str(target), ray_remote_args=light)


def merge(args):
    """One file of all rows. After a failure a row may be there twice, with the same bytes."""
    rows = {}
    kind = "parquet" if is_parquet(args.target) else "json"
    for row in pyarrow.dataset.dataset(args.target, format=kind).to_table().to_pylist():
        if rows.setdefault(row["id"], row) != row:
            raise SystemExit(f"row {row['id']} was computed twice, with different results")
    ordered = [rows[row_id] for row_id in sorted(rows)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ordered), args.merge)
    else:
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in ordered)
        args.merge.write_text("".join(lines), encoding="utf-8")


def main():
    args = arguments()
    # Without a cluster, one on this machine. Two logical cores beside those of the actors: one for the filter of
    # finished rows, which takes a whole one, and one for listing, reading and writing files.
    own = {} if args.address else {"num_cpus": args.actors * args.cpus + 2}
    ray.init(address=args.address, **own)
    generate(args)
    if args.merge:
        merge(args)


if __name__ == "__main__":
    main()
