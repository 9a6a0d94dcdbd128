"""The parsers of several commands in one process, as the demo uses them."""

from hf_gdkd.commands.arguments.other_flags import evaluate_parser
from hf_gdkd.commands.arguments.parsing import parse


def test_evaluate_reads_its_flags_after_distill_has_read_its_own(tmp_path):
    parse(["--student", "s", "--loss", "ce", "--use_cpu", "--output_dir", str(tmp_path)])
    options = evaluate_parser().parse_args("--model m --validation_rows 3 --label_free".split())
    assert options.validation_rows == 3 and options.label_free is True
