"""Settings come from flags, each checked, each explained by its field's docstring."""

from __future__ import annotations

import pytest

from consumer.settings import parse_settings


def test_flags_reach_both_structs() -> None:
    settings = parse_settings(
        ["--model", "m", "--max-num-seqs", "4", "--lease-s", "2.5", "--shard", "default.1"]
    )
    assert (settings.engine.model, settings.engine.max_num_seqs) == ("m", 4)
    assert (settings.lease_s, settings.lease_ms, settings.shard) == (2.5, 2500, "default.1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-num-seqs", "abc"], "--max-num-seqs: Expected `int`"),
        (["--lease-s", "0"], "--lease-s: Expected `float` >= 0.5"),
        (["--lease-s", "nan"], "--lease-s"),
        (["--result-ttl-s", "0"], "--result-ttl-s: Expected `int` >= 1"),
        (["--lookahead", "-1"], "--lookahead"),
        (["--shard", "a}b"], "--shard"),
        (["--tool-format", "json"], "--tool-format: invalid choice: 'json'"),
        (["--precision", "fp64"], "--precision: invalid choice: 'fp64'"),
        (["--ops", "cuda"], "'triton'"),
        (["--overlap", "2"], "--overlap: Expected `int` <= 1"),
    ],
)
def test_a_bad_flag_is_named(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(["--model", "m", *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    assert "renewed at a third of it" in " ".join(capsys.readouterr().out.split())
