"""``lightning-gaudi plan``: figures from a file, a recommendation, a plot, and errors."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_gaudi.cli import main
from lightning_gaudi.data import TextDataModule
from lightning_gaudi.data.plan import forecast_buckets, forecast_unbucketed


@pytest.fixture
def tokenizer(tmp_path):
    """The path of a tokenizer with a token for each word, and no special ones."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(path)
    return str(path)


LENGTHS = [1, 2, 2, 3, 5, 8, 8, 9, 13, 20]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "a " * n, "other": "b " * 2, "number": n} for n in LENGTHS]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def plan(*arguments, capsys):
    main(["plan", *arguments])
    return capsys.readouterr().out


def test_the_table_and_the_recommendation(data, tokenizer, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = plan(
        data, "--tokenizer", tokenizer, "--batch-size", "2", "--max-buckets", "4", capsys=capsys
    )
    assert f"10 texts in {data}: 1 to 20 tokens, half of them up to 8" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [row for row in rows if row]
    unbucketed = forecast_unbucketed(LENGTHS, 2)
    assert rows[0] == [
        "none",
        str(unbucketed.captures),
        f"{100 * unbucketed.padding_fraction:.1f} %",
        "5",
        "0.00 MiB",
        "each batch padded to its longest text",
    ]
    forecasts = forecast_buckets(LENGTHS, 2, 4)
    for number, (row, forecast) in enumerate(zip(rows[1:], forecasts, strict=True), start=1):
        assert row[0].removeprefix("> ") == row[1] == str(number)
        assert row[2] == f"{100 * forecast.padding_fraction:.1f} %"
        assert row[5] == " ".join(map(str, forecast.buckets))
    assert "No 4 buckets pad at most 12 %: the best pad 12.3 %." in out


def test_what_is_recommended_can_be_pasted(data, tokenizer, capsys, tmp_path):
    json_path, png = tmp_path / "out" / "plan.json", tmp_path / "out" / "plan.png"
    out = plan(
        data,
        *("--tokenizer", tokenizer, "--batch-size", "2", "--max-padding", "0.2"),
        *("--json", str(json_path), "--plot", str(png)),
        capsys=capsys,
    )
    assert "Use 3 buckets, the fewest that pad at most 20 %." in out
    (expected,) = [f for f in forecast_buckets(LENGTHS, 2) if len(f.buckets) == 3]
    assert f"    buckets: {expected.buckets}\n    batch_size: 2\n" in out
    document = json.loads(json_path.read_text())
    assert document["recommended"] == 3
    assert document["forecasts"][2]["buckets"] == expected.buckets
    assert document["forecasts"][2]["input_bytes"] == expected.input_bytes
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in png.parent.iterdir()) == ["plan.json", "plan.png"]


def test_pairs_count_together_and_long_texts_are_cut(data, tokenizer, capsys):
    pair = plan(
        data,
        *("--tokenizer", tokenizer, "--batch-size", "2", "--text-pair-column", "other"),
        capsys=capsys,
    )
    assert "3 to 22 tokens" in pair
    cut = plan(
        data, "--tokenizer", tokenizer, "--batch-size", "2", "--max-length", "8", capsys=capsys
    )
    assert "1 to 8 tokens, half of them up to 8, 95 % up to 8; 3 cut to 8." in cut


def test_texts_are_cut_where_text_data_module_cuts_them(data, tokenizer, capsys, tmp_path):
    short = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    short.model_max_length = 9
    short.save_pretrained(tmp_path / "short")
    out = plan(
        data,
        *("--tokenizer", str(tmp_path / "short"), "--batch-size", "2", "--multiple-of", "4"),
        *("--max-buckets", "3", "--max-padding", "0.9", "--json", str(tmp_path / "plan.json")),
        capsys=capsys,
    )
    assert "1 to 9 tokens, half of them up to 8, 95 % up to 9; 2 cut to 9." in out
    forecasts = json.loads((tmp_path / "plan.json").read_text())["forecasts"]
    assert [f["buckets"] for f in forecasts] == [[9], [4, 9], [4, 8, 9]]
    given = TextDataModule(
        str(tmp_path / "short"), train=data, label_column=None, num_buckets=3, multiple_of=4
    )
    given.setup("fit")
    assert given.buckets == [4, 8, 9]


def test_texts_of_no_token(tmp_path, tokenizer, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": ""}\n' * 3)
    options = ("--tokenizer", tokenizer, "--batch-size", "2", "--plot", str(tmp_path / "plan.png"))
    assert "3 texts" in (out := plan(str(path), *options, capsys=capsys))
    assert "Use 1 buckets" in out


def test_many_graphs_need_room(tmp_path, tokenizer, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join("a " * n for n in range(1, 25)))
    arguments = ("--tokenizer", tokenizer, "--batch-size", "2", "--max-padding", "0.01")
    out = plan(str(path), *arguments, capsys=capsys)
    assert "Use 21 buckets" in out
    assert "HPUGraphCallback(max_graphs=21)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "batch_size must be a whole number above 0, but it is 0"),
        (["--max-buckets", "0"], "num_buckets must be a whole number above 0, but it is 0"),
        (["--max-length", "0"], "--max-length must be a whole number above 0, but it is 0"),
        (["--max-padding", "12"], "max_padding must be a fraction from 0 to 1, but it is 12.0"),
        (["--multiple-of", "0"], "multiple_of must be a whole number above 0, but it is 0"),
        (["--text-column", "body"], "there is no column 'body'"),
        (["--text-column", "number"], "which is no text. Give a string in every row"),
        (["--tokenizer", "missing"], "with a tokenizer. Save one there with"),
        (["--plot", "/dev/null/plan.png"], "/dev/null"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_bad_options_are_named(options, message, data, tokenizer, capsys):
    arguments = {"--tokenizer": tokenizer, "--batch-size": "2"} | {options[0]: options[1]}
    with pytest.raises(SystemExit) as stopped:
        main(["plan", data, *[part for pair in arguments.items() for part in pair]])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_data_is_named(tmp_path, tokenizer, capsys):
    options = ["--tokenizer", tokenizer, "--batch-size", "2"]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n')
    no_tokenizer = tmp_path / "nothing"
    no_tokenizer.mkdir()
    for data, others, message in [
        (empty, options, "has no rows, so there is nothing to plan for"),
        (broken, options, "line 2"),
        (tmp_path / "none.csv", options, "there is no such file"),
        (broken, ["--tokenizer", str(no_tokenizer), *options[2:]], "holds no tokenizer"),
        (empty, ["--batch-size", "2"], "the following arguments are required: --tokenizer"),
        (empty, [*options, "--what"], "unrecognized arguments: --what"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["plan", str(data), *others])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
