"""CC-12: what a rank owes goes to one that stays when it leaves, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Size, Tensor

from tests.workers.outer.ranks import OneRank, merge, plain_model, sgd
from workers.transfer import Heir, StateServer, TransferError, hand_over

SHAPES = {"fc.weight": Size([300, 200]), "fc.bias": Size([300])}


class Estate:
    """What a rank that stays has taken over."""

    def __init__(self) -> None:
        self.taken: list[Mapping[str, Tensor]] = []
        self.server = StateServer("127.0.0.1", lambda have, generation: None, Heir(SHAPES, self.taken.append))


@pytest.fixture
def estate() -> Iterator[Estate]:
    found = Estate()
    yield found
    found.server.close()


def residuals() -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=noise) for name, shape in SHAPES.items()}


def test_cc12_what_is_handed_over_arrives_bit_for_bit(estate: Estate) -> None:
    owed = residuals()
    hand_over(estate.server.address, owed, 10.0)
    hand_over(estate.server.address, {"fc.bias": owed["fc.bias"]}, 10.0)
    both, one = estate.taken
    assert both.keys() == owed.keys() and all(torch.equal(both[name], owed[name]) for name in owed)
    assert list(one) == ["fc.bias"]


@pytest.mark.parametrize(
    "owed",
    [
        {"gone": torch.zeros(3)},
        {"fc.bias": torch.zeros(299)},
        {"fc.weight": torch.zeros(200, 300)},
        {"fc.bias": torch.full((300,), float("nan"))},
    ],
    ids=["another name", "another size", "another shape", "not finite"],
)
def test_cc12_what_fits_no_parameter_is_refused_and_nothing_is_taken(estate: Estate, owed: dict[str, Tensor]) -> None:
    with pytest.raises(TransferError):
        hand_over(estate.server.address, owed, 10.0)
    assert estate.taken == []


def test_cc12_what_is_torn_is_not_taken(estate: Estate) -> None:
    host, port = estate.server.address.split(":")
    described = json.dumps([["fc.weight", [300, 200]]]).encode()
    request = json.dumps({"owed": len(described)}).encode()
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(len(request).to_bytes(8, "big") + request + described + bytes(4 * 300 * 200 - 1))
    hand_over(estate.server.address, residuals(), 10.0)
    assert len(estate.taken) == 1


def test_cc12_a_rank_that_takes_over_nothing_says_so() -> None:
    server = StateServer("127.0.0.1", lambda have, generation: None)
    with pytest.raises(TransferError):
        hand_over(server.address, residuals(), 10.0)
    server.close()


def test_cc12_an_heir_that_stalls_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(TransferError, match=f"{address} could not be given what this rank owes"):
            hand_over(address, {"w": torch.zeros(4 << 20)}, 1.0)
        assert time.monotonic() - begun < 10.0
    with pytest.raises(TransferError, match="could not be given"):
        hand_over(address, residuals(), 1.0)  # nobody is there any more


def test_cc12_several_may_hand_over_at_once(estate: Estate) -> None:
    threads = [threading.Thread(target=hand_over, args=(estate.server.address, residuals(), 10.0)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(estate.taken) == 6


def test_cc12_what_was_taken_over_is_owed_from_the_next_step_on() -> None:
    straight, heir = (
        OneRank(model=plain_model, optimizer=sgd, outer_lr=1.0, outer_momentum=0.0, staleness=1) for _ in range(2)
    )
    debt = {name: torch.full(shape, 0.25) for name, shape in heir.engine.heir.shapes.items()}
    heir.engine.heir.inherit(debt)
    share = [[(torch.ones(4, 3), torch.ones(4, 2))]]
    for rank in (straight, heir):
        merge([rank], share)
    for ours, plain in zip(heir.model.parameters(), straight.model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain - 0.25)
    assert not any(tensor.any() for tensor in heir.engine.compression.memory.state_dict().values())


def test_cc12_an_estate_that_was_not_absorbed_yet_goes_on_to_the_next_heir() -> None:
    rank = OneRank(model=plain_model, optimizer=sgd)
    assert rank.engine.estate() == {}
    debt = {name: torch.full(shape, 0.25) for name, shape in rank.engine.heir.shapes.items()}
    rank.engine.heir.inherit(debt)
    assert all(torch.equal(tensor, debt[name]) for name, tensor in rank.engine.estate().items())
    rank.engine.heir.inherit(debt)
    rank.engine.restore(rank.engine.capture())  # a whole state is taken over: nobody knows what is in it
    assert rank.engine.estate() == {}
