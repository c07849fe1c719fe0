import msgspec
import trio

from triops.bench import reconnect
from triops.bench.subjects import Subject, Targets
from triops.bench.turns import results


async def test_who_comes_back_has_the_answer_that_was_missed(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        blocks = await reconnect.measure(targets, 2)
    (found,) = results(blocks)
    assert [(record.turn.state, sorted(record.metrics)) for block in blocks for record in block.records] == [
        ("final", ["caught_up", "hello"])
    ] * 2
    assert found.metrics["caught_up"].min > found.metrics["hello"].min > 0


def test_a_history_that_holds_only_the_question_is_behind():
    asked = {"role": "user", "content": "SAY:x"}
    answered = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    for messages, caught_up in (([asked], False), ([asked, answered], True)):
        assert reconnect.holds(msgspec.Raw(msgspec.json.encode({"messages": messages})), "x") is caught_up
