"""Record a teacher's logits ahead of time, check them, see what they cost, or share them.

    python scripts/cache.py record runs/cache --teacher google/vit-base --dataset timm/mini-imagenet --cache_views 10
    python scripts/cache.py verify runs/cache
    python scripts/cache.py estimate --teacher google/vit-base --dataset timm/mini-imagenet --cache_views 10
    python scripts/cache.py push runs/cache --hub_dataset_id me/vit-base-on-mini-imagenet
    python scripts/cache.py pull me/vit-base-on-mini-imagenet runs/cache

`record` takes the flags of distill.py that are about the teacher, the data and the augmentation, and goes on where an
earlier call stopped; several processes (accelerate launch) share the work. `distill.py --teacher_cache runs/cache` with
the same flags then never loads the teacher.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from hf_gdkd.commands.arguments.help import show_help

    show_help("cache")

import sys
from collections.abc import Sequence

from hf_gdkd.commands.arguments.other_flags import cache_parser
from hf_gdkd.commands.cache_actions import estimate, record, verify
from hf_gdkd.commands.running import quiet, run
from hf_gdkd.publishing.cache_upload import pull_cache, push_cache


def main(argv: Sequence[str] | None = None) -> None:
    """Do one of these."""
    words = list(sys.argv[1:] if argv is None else argv)
    options, flags = cache_parser().parse_known_args(words)
    quiet()
    if options.action == "record":
        record(options.folder, flags)
    elif options.action == "estimate":
        estimate(flags)
    elif options.action == "verify":
        verify(options.folder, options.rows)
    elif options.action == "push":
        print(f"{options.folder} -> {push_cache(options.folder, options.hub_dataset_id, options.hub_private_repo)}")
    else:
        pull_cache(options.hub_dataset_id, options.folder)
        print(f"{options.hub_dataset_id} -> {options.folder}")


if __name__ == "__main__":
    run(main)
