"""``LIGHTNING_GAUDI_EMULATOR_STRICT=1``: what 32 bits lose shows, no op runs on the host."""

from __future__ import annotations

import pytest

NARROWING = """
    import io
    import torch
    from habana_frameworks.torch.hpu import HPUGraph, graph

    def show(tensor):
        print(tensor.dtype, tensor.cpu().tolist())

    big = torch.tensor([2**40 + 5, -(2**33), 7])
    show(big.to("hpu"))                                             # copied in
    show(torch.tensor([2**40 + 5], device="hpu"))
    show(torch.full((1,), 2**31, device="hpu"))                     # made there
    near = torch.tensor([2**31 - 1], device="hpu")
    show(near + 1)                                                  # computed
    show(near.clone().add_(1))                                      # in place
    show(torch.add(near, 1, out=torch.empty(1, dtype=int, device="hpu")))
    show(near.repeat(4).sum().view(1))
    show(near.view(1, 1).expand(2, 2))                              # one number seen four times
    show(near.expand(0, 1))
    fine = torch.tensor([1 + 2.0**-40], dtype=torch.float64)
    show(fine.to("hpu"))
    show(torch.tensor([1.0], dtype=torch.float64, device="hpu") + 2.0**-40)
    file = io.BytesIO()
    torch.save({"big": big, "fine": fine}, file)
    file.seek(0)
    loaded = torch.load(file, map_location="hpu")
    show(loaded["big"])
    show(loaded["fine"])
    captured = HPUGraph()
    with torch.no_grad(), graph(captured):
        out = near + 1
        again = out + near
    near.copy_(torch.tensor([2**31 - 3]))
    captured.replay()
    show(out)
    show(again)
"""
NARROWED = """
torch.int64 [5, 0, 7]
torch.int64 [5]
torch.int64 [-2147483648]
torch.int64 [-2147483648]
torch.int64 [-2147483648]
torch.int64 [-2147483648]
torch.int64 [-4]
torch.int64 [[2147483647, 2147483647], [2147483647, 2147483647]]
torch.int64 []
torch.float64 [1.0]
torch.float64 [1.0]
torch.int64 [5, 0, 7]
torch.float64 [1.0]
torch.int64 [2147483646]
torch.int64 [-5]
""".lstrip()


def test_64_bits_narrow_to_32(run_python):
    assert run_python(NARROWING, LIGHTNING_GAUDI_EMULATOR_STRICT="1").stdout == NARROWED


def test_int64_stays_where_the_card_is_told_so(run_python):
    output = run_python(
        NARROWING, LIGHTNING_GAUDI_EMULATOR_STRICT="1", PT_ENABLE_INT64_SUPPORT="1"
    ).stdout.splitlines()
    assert output[0] == f"torch.int64 [{2**40 + 5}, {-(2**33)}, 7]"
    assert output[3] == f"torch.int64 [{2**31}]"
    assert output[9] == "torch.float64 [1.0]"


def test_without_strict_mode_nothing_narrows(run_python):
    output = run_python(NARROWING, LIGHTNING_GAUDI_EMULATOR_STRICT=None).stdout.splitlines()
    assert output[0] == f"torch.int64 [{2**40 + 5}, {-(2**33)}, 7]"
    assert output[9] == f"torch.float64 [{1 + 2.0**-40!r}]"


def test_training_is_no_different_in_32_bits(run_python):
    """Gradients, an optimizer and views: narrowing is no write that autograd would notice."""
    code = """
        import torch
        from torch import nn

        def train(device):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Embedding(5, 4), nn.LSTM(4, 3, batch_first=True)).to(device)
            optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
            ids = torch.tensor([[0, 1, 4], [2, 2, 3]]).to(device)
            for _ in range(3):
                optimizer.zero_grad()
                out, _ = module(ids)
                out.index_select(1, torch.tensor([2]).to(device)).square().mean().backward()
                optimizer.step()
            return [p.detach().cpu() for p in module.parameters()]

        print(all(torch.equal(a, b) for a, b in zip(train("hpu"), train("cpu"))))
    """
    assert run_python(code, LIGHTNING_GAUDI_EMULATOR_STRICT="1").stdout == "True\n"


def test_an_op_without_a_kernel_is_refused(run_python):
    code = """
        import torch
        x = torch.randn(3, 3, device="hpu")
        try:
            torch.linalg.eigh(x)
        except RuntimeError as error:
            print(error)
    """
    output = run_python(code, LIGHTNING_GAUDI_EMULATOR_STRICT="1").stdout
    assert "has no HPU kernel (hpu_ops.tsv)" in output
    assert "LIGHTNING_GAUDI_EMULATOR_STRICT=1 forbids running it on the CPU" in output


def test_a_wrong_value_says_so(run_python):
    code = """
        import torch
        try:
            torch.ones(1, device="hpu") + 1
        except ValueError as error:
            print(error)
    """
    output = run_python(code, LIGHTNING_GAUDI_EMULATOR_STRICT="yes").stdout
    assert output == "LIGHTNING_GAUDI_EMULATOR_STRICT must be 1 (strict) or 0, but it is 'yes'.\n"


@pytest.mark.slow
def test_replay_is_right_where_the_card_would_free(run_python):
    """The engine of this package under strict mode: nothing of ours reads what is poisoned."""
    code = """
        import torch
        from torch import nn
        from lightning_gaudi.graphs import GraphedForward

        torch.manual_seed(0)
        module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        device = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        device.load_state_dict(module.state_dict())
        device.to("hpu")
        graphed = GraphedForward(device.forward, module=device, pad_batch=False)
        with torch.no_grad():
            for rows in (3, 2, 3, 3, 2):
                x = torch.randn(rows, 5, 8)
                torch.testing.assert_close(graphed(x.to("hpu")).cpu(), module(x))
        print(graphed.stats.captures, graphed.stats.replays)
    """
    assert run_python(code, LIGHTNING_GAUDI_EMULATOR_STRICT="1").stdout == "2 3\n"
