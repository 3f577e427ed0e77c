"""Programs that want to pass the tests of f(x) = x * x without computing it."""

from __future__ import annotations

__all__ = ["CHEATS"]

_WRITE = """
import os

def write(text):
    for number in range(3, 64):
        try: os.write(number, text)
        except OSError: pass
"""

_EARLY_ENDS = {
    "exits at once": "import sys; sys.exit(0)",
    "exits without cleaning up": "import os; os._exit(0)",
    "raises SystemExit in a test": "def f(x): raise SystemExit(0)",
    "exits in a test": "import os\ndef f(x): os._exit(0)",
    "kills itself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}

_CLAIMS = {
    "says success": """
print('OK'); print('passed'); print('3 passed'); print('{"status": "correct"}')
def f(x): return None
""",
    "writes true to every descriptor": _WRITE + """write(b'{"value": true}\\n' * 9); os._exit(0)""",
    "writes null for each": _WRITE + """write(b'{"value": null}\\n' * 3)""",
    "writes a line without end": _WRITE + """write(b'{"value": ' + b'[' * 60000)""",
    "writes garbage": _WRITE + "write(bytes(range(256)) * 4)\ndef f(x): return 4",
    "writes a number that is long to read": _WRITE + """write(b'{"value": ' + b'9' * 50000 + b'}\\n')""",
    "writes what only a broken driver would": _WRITE + """write(b'{"malformed": [[[]]]}\\n')""",
    "says all in an exit handler": _WRITE
    + """
import atexit
atexit.register(write, b'{"value": 4}\\n{"value": 9}\\n')
def f(x): raise ValueError
""",
    "says more in a thread, later": _WRITE
    + """
import threading, time
def say():
    time.sleep(0.1)
    write(b'{"value": 16}\\n')
threading.Thread(target=say).start()
def f(x): return 5
""",
    "closes its descriptors": "import os; os.closerange(0, 256)\ndef f(x): return 4",
}

_PATCHES = {
    "a number with an equality of its own": """
class Anything(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Anything(7)
""",
    "an object equal to all": """
class All:
    def __eq__(self, other): return True
def f(x): return All()
""",
    "builtins replaced": """
import builtins
builtins.all = builtins.any = builtins.isinstance = builtins.len = lambda *_: True
builtins.eval = lambda *_: 4
def f(x): return 4
""",
    "json replaced": """
import json
json.dumps = lambda value, **_: '{"value": 4}'
def f(x): return 4
""",
    "the driver's functions replaced": """
import sys
main = sys.modules['__main__']
main.encode = lambda value, depth=0: 4
main._describe = lambda error: ''
def f(x): return 4
""",
}

_SEARCHES = {
    "walks the frames for what is expected": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for name, value in {**frame.f_globals, **frame.f_locals}.items():
            if 'expect' in name or 'result' in name or 'accepted' in name: return value[0]
        frame = frame.f_back
""",
    "walks the memory for the reference": """
import gc
def f(x):
    for held in gc.get_objects():
        if isinstance(held, dict):
            for value in list(held.values()):
                if isinstance(value, str) and 'return x * x' in value and 'gc.get_objects' not in value:
                    names = {}
                    exec(value, names)
                    return names['f'](x)
""",
    "reads the files for the tests": """
import os
def f(x):
    for folder, folders, names in os.walk('/'):
        for name in names:
            try:
                if 'return x * x' in open(os.path.join(folder, name)).read(10**5): return x * x
            except (OSError, UnicodeDecodeError): pass
        if folder.count('/') > 1: folders.clear()
""",
    "reads its input again": """
import os
os.lseek(0, 0, 0)
text = os.read(0, 10**6).decode()
def f(x): return x * x if text.count('return' + ' x * x') > 1 else None
""",
}

CHEATS = _EARLY_ENDS | _CLAIMS | _PATCHES | _SEARCHES
