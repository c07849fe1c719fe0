from tests.kit.inline_store import open_inline_store

def test_x(tmp_path):
    with open_inline_store(tmp_path/"a"): pass
