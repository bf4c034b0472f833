#!/usr/bin/env python3
"""Makes tests/golden/chat: what transformers renders from chat templates.

`snippets.json` holds template snippets, each with the text that transformers' renderer gives, or null if it raises.
`conversations.json` holds the rendering of each of four conversations by each template of tests/golden/chat/templates.
The templates were written for these tests, modelled on published ones.

Needs transformers 4.57.1 (which brings jinja2):  python3 scripts/make_chat_golden.py
"""

import copy
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat"

# Variables that every snippet sees beside messages, tools and documents.
EXTRA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "additional_special_tokens": ["<|user|>", "<|assistant|>"],
    "words": ["pear", "Apple", "fig", "apple"],
    "numbers": [3, 1, 2],
    "floats": [0.00001, 1e16, 1.0, 0.1, -0.0, 1e100, 123456789.125],
    "nested": {"b": [1, None, True, 1.5, "it's", 'say "hi"'], "a": {"z": "é🙂", "y": []}, "items": "taken"},
    "people": [
        {"name": "Zoe", "age": 30, "at": {"city": "Oslo"}},
        {"name": "adam", "age": 25, "at": {"city": "Rome"}},
        {"name": "Bea", "age": 30, "at": {"city": "oslo"}},
        {"name": "Carl"},
    ],
    "tree": [{"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}, {"name": "d"}]}],
    "text": "The quick  brown fox-like animal\njumps over\tthe lazy dog. ",
    "html": "<a href=\"x\">T&C's</a>  <!-- no --> end",
    "flag": True,
    "nothing": None,
    "empty": "",
    "schema": {
        "type": "object",
        "properties": {"q": {"type": "string", "enum": ["x", "y"]}, "n": {"type": ["integer", "null"]}},
        "required": ["q"],
    },
}

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi <b> & 'you' \n"},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello"}, {"type": "image"}], "name": "bot"},
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city — now",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city"},
                    "unit": {"type": "string", "enum": ["c", "f"]},
                },
                "required": ["city"],
            },
        },
    }
]

SNIPPETS = {
    "printing": [
        "{{ nested }}",
        "{{ nested.b }} {{ nested['a'] }} {{ messages[2] }}",
        "{{ floats }} {% for f in floats %}{{ f }} {% endfor %}",
        "{{ [true, false, none, undefined_name, 1, 1.0, 'a', \"b\"] }}",
        "{{ true }} {{ True }} {{ none }} {{ None }} {{ nothing }} {{ missing }}|",
        "{{ (1, 2) }} {{ (1,) }} {{ () }} {{ 1, 2 }} {{ [] }} {{ {} }}",
        "{{ ['it\\'s', 'a\"b', 'x\\'\"y', 'tab\\t', 'nul\\x00', '\\u200b', 'é', '\\\\'] }}",
        "{{ {1: 'a', 'b': 2, none: 3, true: 4, 1.5: 5, (1, 2): 6} }}",
        "{{ {'a': 1}.items() }} {{ {'a': 1}.keys() }} {{ {'a': 1}.values() }}",
        "{{ range(3) }} {{ range(1, 7, 2) }} {{ range(5, 0, -2) | list }}",
        "{{ 1e5 }} {{ 1.5e-7 }} {{ 1e300 * 1e10 }} {{ 123456789012345678.0 }} {{ 0.1 + 0.2 }} {{ 1_000 }} {{ 0xff }} {{ 0b11 }} {{ 0o17 }}",
        "{{ -1e400 }} {{ [1e400] }}",
        "{{ namespace(a=1, b='x') }}",
        "{{ ('<b>' | e, '<b>' | safe) }}",
        "{% for m in messages %}{{ loop }}{% endfor %}",
        "{% macro f(a) %}{% endmacro %}{{ f }} {{ f.name }} {{ f.arguments }} {{ f.catch_kwargs }}",
        "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] ~ missing }}",
        "{{ 'a' 'b' \"c\" }}{{ 'x'\n 'y' }}",
        "{{ '\\x41\\u00e9\\U0001F642\\101\\n\\t\\q\\'\\\"' }}",
        "{{ '\\é' }}|{{ 'a\\\nb' }}",
        "{{ '\\x4' }}",
        "{{ 'no end }}",
    ],
    "order": [
        "{% for k in nested %}{{ k }},{% endfor %}{{ nested | list }}",
        "{% for k, v in nested.items() %}{{ k }}={{ v }};{% endfor %}",
        "{% for k, v in nested | items %}{{ k }};{% endfor %}{% for k, v in nested | dictsort %}{{ k }};{% endfor %}",
        "{{ nested.keys() | list }} {{ nested.values() | list | length }} {{ nested['items'] }} {{ nested.items is callable }}",
        "{{ dict(b=1, a=2) }} {{ dict({'x': 1}, y=2) }} {{ dict([('k', 'v'), ['l', 'w']]) }}",
        "{{ {'b': 1, 'a': 2, 'b': 3} }} {{ {'a': 1} == {'a': 1.0} }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }}",
        "{{ dict(a=1, **{'b': 2}) }} {{ dict(**{'c': 3}) }}",
    ],
    "tojson": [
        "{{ nested | tojson }}",
        "{{ messages | tojson }} {{ tools | tojson }}",
        "{{ nested | tojson(indent=2) }}",
        "{{ nested | tojson(indent='\\t') }} {{ [[], {}, [1]] | tojson(indent=4) }} {{ [1] | tojson(indent=0) }}",
        "{{ nested | tojson(ensure_ascii=True) }} {{ '\\x7f\\x00\\b\\f/é' | tojson }} {{ '\\x7f' | tojson(true) }}",
        "{{ nested | tojson(sort_keys=true) }}",
        "{{ nested | tojson(separators=(',', ':')) }} {{ nested | tojson(indent=1, separators=(' ,', ' : ')) }}",
        "{{ schema | tojson(indent=4, separators=(',', ': '), ensure_ascii=false, sort_keys=false) }}",
        "{{ floats | tojson }} {{ [1e400, -1e400] | tojson }}",
        "{{ (1, 'a') | tojson }} {{ none | tojson }} {{ true | tojson }} {{ 'x' | tojson }} {{ 1.0 | tojson }}",
        "{{ {1: 'a', none: 'b', true: 'c', 1.5: 'd'} | tojson }}",
        "{{ missing | tojson }}",
        "{{ range(3) | tojson }}",
        "{{ {(1, 2): 3} | tojson }}",
        "{{ ('<b>' | safe) | tojson }} {{ \"it's <b> & \\\"q\\\"\" | tojson }}",
        "{{ [1] | tojson(separators=',') }}",
        "{{ {'b': 1, 2: 3} | tojson(sort_keys=true) }}",
    ],
    "arithmetic": [
        "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }}",
        "{{ 1 / 2 }} {{ 4 / 2 }} {{ 2 ** 3 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ (-2) ** 3 }}",
        "{{ 1 + 1.0 }} {{ true + 1 }} {{ 3 * true }} {{ 5 - 2 - 1 }} {{ 2 + 3 * 4 }} {{ 10 - 4 / 2 }} {{ -5 + 2 }} {{ +3 }} {{ - 3 | abs }}",
        "{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ 'x' * 0 }} {{ 'x' * -1 }}| {{ (1,) * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }}",
        "{{ 1 / 0 }}",
        "{{ 1 % 0 }}",
        "{{ 'a' + 1 }}",
        "{{ [1] + (2,) }}",
        "{{ none + 1 }}",
        "{{ missing + 1 }}",
        "{{ 1 ~ 2 + 3 }} {{ 1 + 2 ~ 3 }} {{ 2 * 3 ~ 4 }}",
        "{{ 170141183460469231731687303715884105727 }} {{ 9007199254740993 * 3 }} {{ 2 ** 100 }}",
        "{{ -3 | abs }} {{ -2.5 | abs }} {{ (-3) | abs }} {{ 0.0 * -1 }} {{ 1e308 * 10 }} {{ 5 // 0.3 }}",
        "{{ 'a' < 'b' }} {{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 3 > 2 >= 2 != 1 }} {{ 1 == 1.0 == true }} {{ [1, 2] < [1, 3] }} {{ (1,) <= (1, 0) }}",
        "{{ 1 < 'a' }}",
        "{{ none < 1 }}",
        "{{ 1 == '1' }} {{ none == none }} {{ none != 0 }} {{ [] == () }} {{ missing == other }} {{ missing == none }} {{ 'a' == 'a' }}",
        "{{ 1 in [1, 2] }} {{ 'b' in 'abc' }} {{ '' in 'abc' }} {{ 'x' not in 'abc' }} {{ 'b' in nested }} {{ 3 in range(5) }} {{ 1.0 in [1] }} {{ 'a' in missing }} {{ not 'a' in 'b' }}",
        "{{ 1 in 'abc' }}",
        "{{ 1 in none }}",
        "{{ missing in 'abc' }}",
        "{{ [] in {} }}",
        "{{ 1 and 0 }} {{ 1 or 0 }} {{ '' or 'b' }} {{ none and 1 }} {{ not 1 }} {{ not missing }} {{ [] or {} or 'x' }}",
        "{{ 5 if true }} {{ 5 if false }}|{{ 1 if 0 else 2 if 0 else 3 }} {{ (1 if false) is defined }}",
        "{{ (5 if false) + 1 }}",
    ],
    "slices": [
        "{{ [0, 1, 2, 3, 4, 5][3:0:-1] }} {{ [0, 1, 2][::-1] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-3:] }} {{ 'abcdef'[:-3] }} {{ 'abcdef'[1:5:2] }}",
        "{{ [0, 1, 2][5:] }} {{ [0, 1, 2][-10:2] }} {{ [0, 1, 2][2:-10:-1] }} {{ [0, 1, 2, 3][-1::-2] }} {{ (1, 2, 3)[1:] }} {{ range(10)[2:8:3] }} {{ range(10)[::-1] }}",
        "{{ messages[1:] | map(attribute='role') | join(',') }} {{ messages[-1].role }} {{ messages[-1]['role'] }} {{ messages[:1][0].role }} {{ messages[none:2] | length }}",
        "{{ 'é🙂x'[1] }} {{ 'abc'[-1] }} {{ 'abc'[9] }}| {{ [1][9] }}| {{ [1, 2].0 }} {{ [[1, 2], [3]].0.1 }} {{ (1, 2)[true] }}",
        "{{ 'abc'[::0] }}",
        "{{ text['a':] }}",
        "{{ nothing[1:] }}",
        "{{ nested[1:] }}",
        "{{ missing[1:] }}",
        "{{ 'abc'['x'] }}| {{ [1]['x'] }}| {{ none['x'] }}| {{ (1)['x'] }}| {{ nested[0] }}| {{ 'abc'[1.0] }}|",
        "{{ nested['b'][4] }} {{ nested.b.4 }} {{ nested.a['z'] }} {{ nested['a'].y }} {{ nested.get('b')[0] }}",
        "{{ nested[['a']] }}",
    ],
    "undefined": [
        "{{ missing | length }} {{ missing | list }} {% for x in missing %}x{% else %}none{% endfor %} {{ missing | default('d') }} {{ missing is defined }}",
        "{{ missing | upper }}|{{ missing | join(',') }}|{{ missing | first }}|{{ missing | string }}|{{ missing | trim }}|{{ missing | sort }}|{{ missing | sum }}|{{ missing | map('upper') | list }}",
        "{{ missing.attribute }}",
        "{{ missing['item'] }}",
        "{{ missing() }}",
        "{{ messages[0].nope }}| {{ messages[0].nope is defined }} {{ messages[0]['nope'] is undefined }} {{ messages[0].nope or 'x' }}",
        "{{ messages[0].nope.more }}",
        "{{ messages[9].role }}",
        "{{ missing | int }}",
        "{{ none.x }}| {{ nothing.x is defined }} {{ 1 .x }}|",
        "{{ missing > 1 }}",
        "{{ -missing }}",
        "{{ missing | d }}|{{ none | d('x') }}|{{ none | d('x', true) }}|{{ '' | default('y', boolean=true) }}|{{ 0 | d(5) }}",
        "{{ missing is sequence }} {{ missing is iterable }} {{ missing is mapping }} {{ missing is string }} {{ missing is callable }} {{ missing is none }} {{ [missing] | length }}",
        "{{ [missing, 1] | sort }}",
        "{{ missing | round }}",
        "{{ missing.startswith('x') if missing else 'no' }} {{ (missing or {}).x }}|",
        "{{ undefined | length }}{{ 'abc' | length }}{{ [1, 2] | count }}{{ nested | length }}",
        "{{ 1 | length }}",
        "{{ none | length }}",
        "{% set x %}{% endset %}{{ x | length }} {{ x is defined }}",
        "{{ messages[0].__class__ }}| {{ 'x'.__class__ is defined }} {{ ''['__len__'] }}|",
        "{{ 'x'.__class__.__mro__ }}",
        "{% set ns = namespace(_p=1, q=2) %}{{ ns.q }}{{ ns['q'] }}{{ ns._p }}|{{ ns.none }}|{{ ns['x'] is defined }}",
    ],
    "tests": [
        "{% for v in [1, 1.0, true, 'a', none, [1], (1,), {}, range(2), missing] %}{{ v is number }}{{ v is integer }}{{ v is float }}{{ v is boolean }}{{ v is string }}{{ v is sequence }}{{ v is iterable }}{{ v is mapping }}{{ v is none }}{{ v is defined }}\n{% endfor %}",
        "{{ 'a' is sequence }} {{ nested is sequence }} {{ messages is sequence }} {{ (messages | map('upper')) is sequence }} {{ (messages | select) is iterable }} {{ nested.items() is sequence }} {{ nested.items() is iterable }}",
        "{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 3 is not even }} {{ -1 is odd }} {{ 2.0 is even }}",
        "{{ 1 is eq 1 }} {{ 1 is equalto(1) }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is le 1 }} {{ 2 is gt 1 }} {{ 2 is ge 3 }} {{ 1 is greaterthan 0 }} {{ 1 is lessthan 0 }} {{ 1 is in [1] }} {{ 'a' is in('abc') }} {{ 3 is not in [1] }}",
        "{{ true is true }} {{ 1 is true }} {{ false is false }} {{ none is sameas none }} {{ 1 is sameas true }} {{ flag is sameas true }}",
        "{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'aB' is lower }} {{ '1' is lower }} {{ 'x' is filter }} {{ 'upper' is filter }} {{ 'odd' is test }} {{ 'x' is test }} {{ ('a' | e) is escaped }}",
        "{{ range is callable }} {{ 'a'.upper is callable }} {{ 1 is callable }} {{ raise_exception is defined }} {{ strftime_now is defined }}",
        "{{ 'a' is odd }}",
        "{{ none is odd }}",
        "{{ 1 is nonsense }}",
        "{{ 1 is none or 2 is number and 3 is string }} {{ messages is not string and messages is iterable }} {{ not messages is string }}",
        "{{ 2 is divisibleby 2 + 1 }}",
        "{% if tools is not none and tools is iterable and tools | length > 0 %}yes{% endif %}{% if documents is none %}none{% else %}docs{% endif %}",
    ],
    "string methods": [
        "{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b c '.split() }} {{ ' a  b c '.split(none, 1) }} {{ ' a  b c '.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }}",
        "{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }} {{ 'abc'.rpartition('=') }}",
        "{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'x'.removeprefix('y') }} {{ 'xx'.removesuffix('') }}",
        "{{ 'a\\nb\\r\\nc\\n'.splitlines() }} {{ 'a\\nb\\n'.splitlines(true) }} {{ 'a\\x0bb\\x85c\\u2028d'.splitlines() }} {{ ''.splitlines() }}",
        "{{ 'hello wORLD it\\'s'.title() }} {{ 'hELLO wORLD'.capitalize() }} {{ 'Hello'.swapcase() }} {{ 'Straße'.upper() }} {{ 'ßa'.title() }} {{ 'ΑΣ'.lower() }} {{ 'ΑΣ'.capitalize() }} {{ 'İ'.lower() | length }} {{ 'ǆ'.title() }}",
        "{{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} {{ 'a'.center(4) }}| {{ 'ab'.center(5, '*') }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '.') }} {{ 'abc'.center(2) }} {{ 'a\\tb'.expandtabs(4) }}",
        "{{ 'banana'.find('an') }} {{ 'banana'.rfind('an') }} {{ 'banana'.find('x') }} {{ 'banana'.index('n') }} {{ 'banana'.count('an') }} {{ 'banana'.count('') }} {{ 'banana'.find('a', 2) }} {{ 'banana'.find('a', 2, 3) }} {{ 'éa'.find('a') }} {{ 'abc'.find('', 3) }} {{ 'abc'.find('', 4) }} {{ 'banana'.count('a', -3) }}",
        "{{ 'banana'.index('x') }}",
        "{{ '123'.isdigit() }} {{ '²'.isdigit() }} {{ '²'.isdecimal() }} {{ '½'.isnumeric() }} {{ '٣'.isdecimal() }} {{ 'abc'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ ''.isspace() }} {{ 'Ab Cd'.istitle() }} {{ 'AB'.isupper() }} {{ 'ab1'.islower() }} {{ 'a b'.isidentifier() }} {{ 'é'.isascii() }} {{ '\\n'.isprintable() }}",
        "{{ '  a  '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.lstrip('ab') }}|{{ 'abcba'.rstrip('ab') }}|{{ '\\u3000\\xa0a\\x1f'.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'a'.strip('') }}",
        "{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'abc'.replace('', '-') }} {{ 'abc'.replace('b', '') }}",
        "{{ ', '.join(['a', 'b']) }} {{ ''.join(words) }} {{ '-'.join('abc') }} {{ ','.join({'x': 1}) }}",
        "{{ ','.join([1]) }}",
        "{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'ab')) }} {{ 'abc'.endswith('bc') }} {{ 'abc'.endswith(('z',)) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('') }}",
        "{{ 'abc'.startswith(['a']) }}",
        "{{ 'abc'.startswith(1) }}",
        "{{ 'a'.nope }}| {{ 'a'.nope is defined }}",
        "{{ 'a'.nope() }}",
        "{{ 'Hello'.lower() }} {{ 'Hello'.upper() }} {{ 'HELLO ß'.casefold() }} {{ 'a'['upper']() }} {{ ('a' ~ 'b').upper() }} {{ 'x'.upper().lower() }}",
        "{{ 'a'.split('') }}",
        "{{ 'a,b'.split(sep=',', maxsplit=1) }} {{ 'ab'.strip(chars='a') if false else 'x' }} {{ 'a b'.split(maxsplit=0) }}",
        "{% for c in 'aé🙂' %}[{{ c }}]{% endfor %} {{ 'aé🙂' | length }} {{ 'aé🙂' | list }}",
    ],
    "container methods": [
        "{{ nested.get('b') }} {{ nested.get('x') }} {{ nested.get('x', 'd') }} {{ nested.get('x', default='d') if false else 'y' }}",
        "{{ [1, 2, 1].count(1) }} {{ [1, 2, 1].index(2) }} {{ (1, 2).index(2) }} {{ [1, 2, 1].index(1, 1) }} {{ range(5).index(3) }} {{ range(5).count(9) }}",
        "{{ [1].index(9) }}",
        "{{ [1].append(2) }}",
        "{{ nested.pop('a') }}",
        "{{ nested.update({}) }}",
        "{% set l = [] %}{% if l.append %}x{% else %}unsafe{% endif %} {{ nested.clear is defined }} {{ [1].copy() }} {{ {'a': 1}.copy() }}",
        "{{ 5 .bit_length() }} {{ 1.0.is_integer() }} {{ 1.5.is_integer() }}",
        "{{ {}.get([]) }}",
        "{{ {'a': 1}.nope }}| {{ [1].nope }}|",
        "{{ {'get': 5}['get'] }}",
    ],
    "formatting": [
        "{{ '%s' % 'x' }} {{ '%s and %s' % ('a', 1) }} {{ '%d%%' % 5 }} {{ '%5.2f|%-5s|%05d|%+d|%x|%X|%#x|%o|%e|%g|%r|%c' % (3.14159, 'a', 42, 7, 255, 255, 255, 8, 12345.678, 0.0001, 'q', 'z') }}",
        "{{ '%(a)s-%(b)03d' % {'a': 1, 'b': 2} }} {{ '%s' % [1, 2] }} {{ '%s' % {'a': 1} }} {{ '%s' % none }} {{ '%s' % ((1, 2),) }} {{ 'x' % {} }} {{ 'x' % [] }}",
        "{{ '%*d|%-*d|%.*f' % (5, 42, 5, 42, 2, 3.14159) }} {{ '%.3s' % 'abcdef' }} {{ '% d' % 5 }} {{ '%i' % 3.99 }} {{ '%5s|%5.1s' % ('ab', 'xyz') }} {{ '%.0f' % 2.5 }} {{ '%a' % 'é' }} {{ '%G' % 1e-10 }} {{ '%s' % true }} {{ '%d' % true }}",
        "{{ '%s %s' % 'a' }}",
        "{{ 'x' % 1 }}",
        "{{ '%d' % 'a' }}",
        "{{ '%(x)s' % {} }}",
        "{{ '%q' % 1 }}",
        "{{ '%s' % missing }}",
        "{{ '{} {}'.format('a', 1) }} {{ '{0}{1}{0}'.format('x', 'y') }} {{ '{a} {b!r}'.format(a=1, b='q') }} {{ '{{}}'.format() }} {{ '{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:+}|{:,}|{:_}'.format('a', 'b', 'c', 'd', 42, 7, 1234567, 1234567) }}",
        "{{ '{:.2f} {:.3e} {:g} {:%} {:.1%} {:10.3f}| {:<10}| {:x} {:#b} {:o} {:X} {:c} {:n}'.format(3.14159, 12345.678, 1e20, 0.25, 0.256, 2.5, 1.5, 255, 5, 8, 255, 65, 10) }}",
        "{{ '{0[name]} {0.role} {1[0]} {2[a][z]}'.format({'name': 'n', 'role': 'r'}, [1], nested) }} {{ '{:{}}|{:{w}.{p}f}'.format('a', 5, 3.14159, w=8, p=2) }} {{ '{!s:>4}'.format(1) }} {{ '{:,.2f}'.format(12345.678) }} {{ '{:08,d}'.format(1234) }} {{ '{:=+6d}'.format(5) }} {{ '{:.3}'.format('abcdef') }} {{ '{:.3}'.format(3.14159) }} {{ '{:5}|'.format(true) }} {{ '{}'.format(none) }} {{ '{a[b]}'.format_map({'a': {'b': 1}}) }}",
        "{{ '{}'.format() }}",
        "{{ '{x}'.format() }}",
        "{{ '{'.format() }}",
        "{{ '}'.format() }}",
        "{{ '{:d}'.format('a') }}",
        "{{ '{:5}'.format([1]) }}",
        "{{ '{0.__class__}'.format('x') }}|{{ '{0} {}'.format(1) if false else 'z' }}",
        "{{ '%s, %s!' | format('Hello', 'you') }} {{ '%(a)s' | format(a=1) }} {{ 'x' | format }}",
        "{{ '{:.0f} {:.0e} {:#.0f} {:.2} {:.10g} {:G} {:F}'.format(2.5, 15000, 3, 10.0, 1/3, 1e-7, floats[1]) }}",
    ],
    "filters": [
        "{{ words | sort }} {{ words | sort(reverse=true) }} {{ words | sort(case_sensitive=true) }} {{ numbers | sort }} {{ people[:3] | sort(attribute='name') | map(attribute='name') | list }} {{ people[:3] | sort(attribute='age,name') | map(attribute='name') | join(' ') }} {{ 'bca' | sort }} {{ people[:3] | sort(reverse=true, attribute='age') | map(attribute='name') | join }}",
        "{{ [1, 'a'] | sort }}",
        "{{ words | unique | list }} {{ words | unique(true) | list }} {{ [1, 1.0, true, 2] | unique | list }} {{ people[:3] | unique(attribute='age') | map(attribute='name') | list }}",
        "{{ words | min }} {{ words | max }} {{ numbers | min }} {{ numbers | max }} {{ [] | min }}| {{ people[:3] | max(attribute='age') }} {{ words | min(case_sensitive=true) }}",
        "{{ words | first }} {{ words | last }} {{ [] | first }}| {{ 'abc' | first }} {{ 'abc' | last }} {{ nested | first }} {{ nested | last }} {{ numbers | reverse | list }} {{ 'abc' | reverse }} {{ (numbers | map('string')) | first }}",
        "{{ (numbers | select) | last }}",
        "{{ words | join }} {{ words | join(', ') }} {{ numbers | join('-') }} {{ people[:3] | join(', ', attribute='name') }} {{ [1, none, true, 1.0] | join(' ') }} {{ 'abc' | join('.') }} {{ people[:2] | join(',', 'at.city') }}",
        "{{ numbers | sum }} {{ people[:3] | sum(attribute='age') }} {{ [0.1, 0.2] | sum }} {{ [[1], [2]] | sum(start=[]) }} {{ [] | sum }} {{ numbers | sum(start=10) }}",
        "{{ ['a'] | sum }}",
        "{{ words | map('upper') | list }} {{ words | map('replace', 'p', 'b') | join }} {{ people | map(attribute='age', default=0) | list }} {{ people | map(attribute='age') | list }} {{ [[1, 2], [3]] | map('first') | list }} {{ [[1, 2], [3]] | map(attribute=0) | list }} {{ ['1', '2'] | map('int') | sum }} {{ [1, 2] | map('string') | join('+') }}",
        "{{ words | map | list }}",
        "{{ words | map('nonsense') | list }}",
        "{{ numbers | select('odd') | list }} {{ numbers | reject('odd') | list }} {{ numbers | select('gt', 1) | list }} {{ [0, 1, '', 'a'] | select | list }} {{ [0, 1] | reject | list }} {{ people | selectattr('age') | map(attribute='name') | list }} {{ people | selectattr('age', 'defined') | list | length }} {{ people | rejectattr('age', 'defined') | map(attribute='name') | first }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ people[:3] | selectattr('at.city', 'eq', 'Oslo') | map(attribute='name') | list }} {{ messages | selectattr('role', 'in', ['user', 'system']) | list | length }}",
        "{{ people | groupby('age', default=0) | length }} {% for age, list in people[:3] | groupby('age') %}{{ age }}:{{ list | map(attribute='name') | join(',') }};{% endfor %} {% for g in people[:3] | groupby('at.city') %}{{ g.grouper }}={{ g.list | length }} {% endfor %} {{ ([{'a': 1}] | groupby('a')) }} {% for g in people[:3] | groupby('at.city', case_sensitive=true) %}{{ g[0] }} {% endfor %}",
        "{{ numbers | batch(2) | list }} {{ numbers | batch(2, 'x') | list }} {{ [1, 2, 3, 4, 5, 6, 7] | slice(3) | list }} {{ [1, 2, 3, 4, 5, 6, 7] | slice(3, 'x') | list }} {% for row in numbers | batch(2) %}{{ row }}{% endfor %}",
        "{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2, 'c': 0} | dictsort(false, 'value') }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}",
        "{{ {'b': 1} | dictsort(by='nonsense') }}",
        "{{ 'hello' | upper }} {{ 'HELLO' | lower }} {{ 'hello wORLD-foo (bar) [baz] it\\'s' | title }} {{ 'hELLO w' | capitalize }} {{ 5 | upper }} {{ none | lower }} {{ ' x ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ 'a' | center(5) }}| {{ [1] | string }} {{ 5 | string | length }}",
        "{{ 'aXbX' | replace('X', '-') }} {{ 'aXbX' | replace('X', '-', 1) }} {{ 123 | replace(2, 'x') }} {{ [1, 2] | replace('1', 'one') }} {{ 'abc' | replace('', '.') }}",
        "{{ text | wordcount }} {{ 'a-b c_d é 1' | wordcount }} {{ '' | wordcount }} {{ text | truncate(15) }}| {{ text | truncate(15, true) }}| {{ text | truncate(15, end='…') }}| {{ 'abc' | truncate(2, leeway=0, end='') }} {{ 'short' | truncate(3, true, '') }} {{ 'shortlonger' | truncate(5, true, '..', 0) }}",
        "{{ text | truncate(2) }}",
        "{{ text | wordwrap(10) }}",
        "{{ text | wordwrap(8, wrapstring='|') }} {{ 'extraordinarily long-hyphenated-words here' | wordwrap(10) }} {{ 'extraordinarily long' | wordwrap(6, false) }} {{ 'a-b-c-d well-known x--y end' | wordwrap(5, break_on_hyphens=false) }} {{ 'foo-bar baz--qux well-to-do' | wordwrap(9) }}",
        "{{ 'a\\nb\\n\\nc' | indent }} {{ 'a\\nb' | indent(2, true) }} {{ 'a\\n\\nb' | indent(2, blank=true) }} {{ 'a\\nb' | indent('> ') }} {{ 'a\\n' | indent(first=true) }}| {{ '' | indent }}|",
        "{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '0x1f' | int(base=16) }} {{ '101' | int(0, 2) }} {{ 4.9 | int }} {{ none | int }} {{ true | int }} {{ ' 5 ' | int }} {{ '1_000' | int }} {{ '1e3' | int }} {{ [] | int(1) }}",
        "{{ '1.5' | float }} {{ 'x' | float }} {{ 'x' | float(2.5) }} {{ 3 | float }} {{ 'inf' | float }} {{ '1e-7' | float }} {{ none | float }} {{ ' 2 ' | float }}",
        "{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42.55 | round(1, 'floor') }} {{ 42.51 | round(1, 'ceil') }} {{ 42 | round }} {{ 1234 | round(-2) }} {{ 2.5 | round(method='ceil') }} {{ 7 | round(0, 'floor') }} {{ -2.5 | round }} {{ 1.23456 | round(3) }}",
        "{{ 'x' | round }}",
        "{{ 2.5 | round(1, 'nonsense') }}",
        "{{ 1 | filesizeformat }} {{ 999 | filesizeformat }} {{ 1500 | filesizeformat }} {{ 1500000 | filesizeformat }} {{ 1024 | filesizeformat(true) }} {{ '2000' | filesizeformat }} {{ 1e30 | filesizeformat }}",
        "{{ html | e }} {{ html | escape | e }} {{ ('<' | e) + '<' }} {{ '<' + ('<' | e) }} {{ ('<' | safe) ~ '<' }} {{ html | striptags }} {{ ('<b>' | safe) | forceescape }} {{ ('%s' | safe) % '<' }} {{ (('<' | e) * 2) }} {{ 5 | e }}",
        "{{ {'class': 'a b', 'id': none, 'x': missing, 'n': 1, 'q': '<\"'} | xmlattr }} {{ {'a': 1} | xmlattr(false) }} {{ {} | xmlattr }}|",
        "{{ {'a b': 1} | xmlattr }}",
        "{{ 'a b/c?é&' | urlencode }} {{ {'a': 'b c', 'd/e': 1} | urlencode }} {{ [('x', 'y/z')] | urlencode }} {{ 5 | urlencode }}",
        "{{ nested | pprint }} {{ 'a' | pprint }} {{ [1, 2] | pprint }}",
        "{{ {'description': 'a long description of what this thing is for, and why anyone would want it', 'type': 'object', 'list': [1, 2, 3], 'also': {'deep': 'and another rather long text goes here so that it wraps'}} | pprint }}",
        "{{ {'b': (1, 'x' * 90), 'a': ['word ' * 20]} | pprint }}\n{{ ('lorem ipsum ' * 10) | pprint }}",
        "{{ nested | attr('keys') is callable }} {{ nested | attr('b') }}| {{ 'abc' | attr('upper') is defined }} {{ [1] | list }} {{ 'ab' | list }} {{ (1, 2) | list }}",
        "{{ 1 | nonsense }}",
        "{{ 1 | default() | string | upper | lower }} {{ words | map('length') | map('string') | join(',') | upper }}",
        "{{ 5 | abs }} {{ 'a' | abs }}",
        "{{ words | items | list }}",
        "{{ 1 | list }}",
        "{% set g = numbers | map('string') %}{{ g | list }}{{ g | list }}",
        "{% set g = numbers | select('gt', 1) %}{% for x in g %}{{ x }}{% endfor %}{% for x in g %}again{% else %}empty{% endfor %}{{ g and 'truthy' }}",
        "{{ (numbers | map('string')) | length }}",
        "{{ (numbers | map('string'))[0] }}|{{ numbers | reverse is sequence }}",
    ],
    "loops": [
        "{% for x in numbers %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}/{{ loop.depth }}/{{ loop.depth0 }} {% endfor %}",
        "{% for x in numbers %}{{ loop.previtem }}<{{ x }}<{{ loop.nextitem }} {% endfor %}",
        "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }} {% endfor %}{% for x in numbers %}{{ loop.cycle('a', 'b') }}{% endfor %}",
        "{% for x in [] %}x{% else %}empty{% endfor %}{% for x in numbers if x > 5 %}x{% else %}filtered{% endfor %}",
        "{% for x in numbers if x != 1 %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }} {% endfor %}",
        "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
        "{% for x in numbers %}{% break %}{% else %}else{% endfor %} {% for x in numbers %}{% continue %}{% else %}else{% endfor %} {% for x in numbers %}{% if loop.first %}{% continue %}{% endif %}{{ x }}{% else %}else{% endfor %}",
        "{% for item in tree recursive %}{{ loop.depth }}{{ item.name }}{% if item.children %}[{{ loop(item.children) }}]{% endif %}{% endfor %}",
        "{% for x in [1, 2] %}{% for y in 'ab' %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index }};{% endfor %}",
        "{% for x in [1, 2] %}{% set outer = loop %}{% for y in 'ab' %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
        "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }} {% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
        "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
        "{% for a, b in [1] %}{% endfor %}",
        "{% for x in 5 %}{% endfor %}",
        "{% for x in none %}{% endfor %}",
        "{% for x in numbers %}{{ loop(x) }}{% endfor %}",
        "{% for x in numbers %}{% set y = x %}{% endfor %}{{ y }}|{{ x }}|{{ loop }}|",
        "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }} {% endfor %}{{ x }}",
        "{% for i in [1, 2] %}{% if loop.first %}{% set z = 'set' %}{% endif %}{{ z }}|{% endfor %}",
        "{% for x in range(100001) %}{% endfor %}",
        "{{ range(100000) | length }} {{ range(0, 10, 3) | list }} {{ range(3, 0) | list }} {{ range(-2) | list }}",
        "{{ range(0, 10, 0) }}",
        "{{ range('a') }}",
        "{% break %}",
        "{% for x in numbers %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}",
        "{% for loop in numbers %}{% endfor %}",
        "{% for m in messages %}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}{% for m in messages | reverse %}{{ m.role[0] }}{% endfor %}{% for i in range(messages | length - 1, -1, -1) %}{{ messages[i].role[0] }}{% endfor %}",
        "{% for x in numbers | sort %}{{ x }}{% endfor %}{% for c in 'ab' ~ 'c' %}{{ c }}{% endfor %}{% for x in (1, 2) if x is odd %}{{ x }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}",
    ],
    "scopes": [
        "{% set a = 1 %}{% if true %}{% set a = 2 %}{% endif %}{{ a }} {% set a, b = 3, 4 %}{{ a }}{{ b }} {% set c = 1, 2 %}{{ c }} {% set (d, e) = [5, 6] %}{{ d }}{{ e }}",
        "{% set ns = namespace(n=0, found=false) %}{% for x in numbers %}{% set ns.n = ns.n + x %}{% if x == 1 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.found }} {% set ns.new = [1] %}{{ ns.new }} {{ ns.new + [2] }}",
        "{% set d = {} %}{% set d.x = 1 %}",
        "{% set nope.x = 1 %}",
        "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }} {% set ns.a, x = 7, 8 %}{{ ns.a }}{{ x }}",
        "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ c }}|{% with %}x{% endwith %}{% set a = 5 %}{% with a = a + 1, b = a %}{{ a }}{{ b }}{% endwith %}",
        "{% set x %}a{{ 1 + 1 }}b{% endset %}{{ x }} {% set y | upper | replace('A', 'z') %}abc{% set inner = 1 %}{% endset %}{{ y }}{{ inner }}|",
        "{% filter upper %}abc {{ 'd' }}{% endfilter %} {% filter replace('a', 'b') | trim %} aXa {% endfilter %}|",
        "{% macro f(a, b='x', c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(1, c=3) }}{{ f(b=1) }}{{ f() }}",
        "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, x=4) }}{{ f() }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(x=2) }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}",
        "{% macro wrap(tag) %}<{{ tag }}>{{ caller() }}</{{ tag }}>{% endmacro %}{% call wrap('b') %}text {{ 1 + 1 }}{% endcall %}",
        "{% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(x, i) each(words) %}{{ i }}{{ x }};{% endcall %}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}",
        "{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}",
        "{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * fact(n - 1) | int }}{% endif %}{% endmacro %}{{ fact(5) }}",
        "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}{% for x in [3] %}{{ f() }}{% endfor %}",
        "{% for i in [1, 2] %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}{{ f }}|",
        "{{ f() }}{% macro f() %}{% endmacro %}",
        "{% macro f(a, b=1, c) %}{% endmacro %}",
        "{% macro f(d) %}{{ d.x }}{% set d = 5 %}{{ d }}{% endmacro %}{{ f({'x': 1}) }}{{ d }}|{{ f({'x': 2}) | upper | length }}",
        "{% set j = joiner() %}{% for w in words %}{{ j() }}{{ w }}{% endfor %} {% set k = joiner(' | ') %}{{ k() }}a{{ k() }}b{{ k() }}",
        "{% set c = cycler('odd', 'even') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.reset() }}{{ c.current }}",
        "{{ cycler() }}",
        "{% block head %}a{{ words[0] }}{% endblock %}{% block foot %}b{% endblock foot %}",
        "{% set x = 1 %}{% for i in [7] %}{% block inner %}{{ i }}|{{ x }}{% endblock %}{% endfor %}{% for i in [7] %}{% block scoped scoped %}{{ i }}{% endblock %}{% endfor %}",
        "{% print 1, 'a' %}{% print words[0] %}",
        "{% if false %}a{% elif 0 %}b{% elif 'x' %}c{% else %}d{% endif %}{% if missing %}e{% endif %}{% if 1, %}f{% endif %}",
        "{% if true: %}colon{% endif %}{% for x in [1]: %}{{ x }}{% endfor %}",
        "{% include 'x' %}",
        "{% if false %}{% include 'x' %}{% endif %}ok",
        "{% import 'x' as y %}",
        "{% do 1 %}",
        "{% endif %}",
        "{% if true %}",
        "{% for x in [1] %}{% endif %}",
        "{% set loop = 1 %}{{ loop }}",
        "{% set true = 1 %}",
    ],
    "white space": [
        "a\n  {% if true %}\n  b\n  {% endif %}\nc",
        "a\n  {%+ if true %}\n  b\n  {%- endif +%}\nc\n",
        "a  {{- ' b ' -}}  c\n{{- 'd' }}\n\n",
        "  {# comment #}  x\n  {# alone #}\ny {#- strip -#} z {#+ keep +#}\nw",
        "{% raw %}{{ x }} {% if %} {# c #}{% endraw %}|{%- raw -%}  a  {%- endraw -%}  b",
        "  {% raw %}\n a\n  {% endraw %}\n b",
        "a\r\n{% if true %}\r\nb\rc\r\n{% endif %}\r\n{{ 'x\r\ny' | length }}\r\n",
        "a\n\n",
        "\n\na\n",
        "{{ 'a' }}\n{{ 'b' }}\n",
        "{% set x = 1 %}\n{% set y = 2 %}\n{{ x }}{{ y }}",
        "  {% for x in [1, 2] %}  \n  {{ x }}\n  {% endfor %}  \nend",
        "{%- for x in [1, 2] -%}\n  {{ x }} \n{%- endfor -%}\n\n end",
        "\t{% if true %}\ttab{% endif %}\n\u00a0{% if true %}nbsp{% endif %}",
        "x {% if true -%}   y {%- endif %} z",
        "{{ {'a': {'b': 1}}['a'] }}{{ {'x': {}} }}{{ '}}' }}{{ '{%' }}{{ \"{{\" }}",
        "{#{% if %}#}{{ '#}' }}{# {{ #}",
        "{{- 1 }}{{ -1 }}{{ - 1 }}{{-1 }}",
        "{{1}}{%if true%}a{%endif%}{{2}}",
        "text with { braces } and % signs and {a} #}",
        "{% if true %}{{ 1 }}",
        "{{ 1 ",
        "{{ (1 }}",
        "{{ [1) }}",
        "{# no end",
        "{% raw %} no end",
        "{{ }}",
        "{{ 1 2 }}",
        "{{ a b }}",
        "{{ a..b }}",
        "{{ $x }}",
        "{{ 1 | }}",
        "{{ x is }}",
        "{{ f(a=1, 2) }}",
        "{{ f(*[1], *[2]) }}",
        "{{ 1 is number is string }}",
    ],
    "generation": [
        "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %};{% endfor %}",
        "{%generation%}a{%endgeneration%}{%- generation -%}  b  {%- endgeneration -%}  c",
        "{% if true %}\n  {% generation %}\n  x\n  {% endgeneration %}\n{% endif %}",
        "{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}{# {% generation %} #}",
        "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}|",
        "{% for x in [1] %}{% generation %}{{ loop.index }}{{ x }}{% endgeneration %}{% endfor %}",
        "{% for x in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
        "{% generation %}a",
        "{% endgeneration %}",
        "{{ generation }}|{% set generation = 1 %}{{ generation }}",
    ],
    "chat": [
        "{{ bos_token }}{% for m in messages %}{% if m.content is string %}{{ m.role ~ ': ' ~ m.content }}{% else %}{% for part in m.content if part.type == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}{{ eos_token }}",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{{ loop.index0 }}{% endfor %}{{ system }}",
        "{{ raise_exception('no') }}",
        "{{ raise_exception() }}",
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ add_generation_prompt }}",
        "{{ additional_special_tokens[0] }}{{ additional_special_tokens | length }} {{ pad_token is defined }} {{ messages | length }} {{ messages[-1]['name'] }}",
        "{% macro type_of(s) %}{% if s.type is string %}{{ {'string': 'str', 'integer': 'int'}.get(s.type, s.type) }}{% elif s.type is iterable %}{{ s.type | join(' | ') }}{% endif %}{% endmacro %}{% for name, s in schema.properties.items() %}{{ name }}{{ '' if name in schema.required else '?' }}: {{ type_of(s) }}{% if s.enum %} ({{ s.enum | join('|') }}){% endif %}\n{% endfor %}",
        "{% for tool in tools %}{% set tool = tool.function %}{{ tool.name }}({% for p in tool.parameters.properties %}{{ p }}{% if not loop.last %}, {% endif %}{% endfor %}) {{ tool.parameters.properties.city.type }} {{ tool | tojson }}{% endfor %}",
        "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}{% if ns.last == -1 and m.role == 'user' and not (m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}{% set ns.last = index %}{% endif %}{% endfor %}{{ ns.last }}",
        "{% set c = '<think>a</think>\\n\\nb' %}{{ c.split('</think>')[-1].lstrip('\\n') }} {{ c.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }} {{ (c.split('</think>') | last).strip() }}",
        "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n        {{- \"\\n\" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '\\n</tools>' }}\n{%- endif %}\n",
        "{{ messages | map(attribute='content') | select('string') | map('trim') | join('\\n') }}",
        "{{ strftime_now('%Y') | length }} {{ strftime_now('') }}| {{ strftime_now('100%%') }}",
        "{{ messages.0.role }} {{ messages[0] is mapping }} {{ 'content' in messages[0] }} {{ messages[0].keys() | list }} {{ messages[2].content[0].text }} {{ messages[2].content | selectattr('type', 'equalto', 'image') | list | length }}",
    ],
}


def render(template, messages, tools, documents, **extra):
    """The rendered text, or None if the renderer raises."""
    # Some filters modify their input.
    messages, extra = copy.deepcopy(messages), copy.deepcopy(extra)

    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, documents=documents, chat_template=template,
            add_generation_prompt=True, **extra,
        )
        return rendered[0]
    except Exception as error:  # whatever it is, the template fails
        return None


def snippets():
    made = []
    for topic, templates in SNIPPETS.items():
        for template in templates:
            made.append({"topic": topic, "template": template, "text": render(template, MESSAGES, TOOLS, None, **EXTRA)})
    return {"messages": MESSAGES, "tools": TOOLS, "extra": EXTRA, "snippets": made}


CONVERSATIONS = {
    "plain": {"messages": [{"role": "user", "content": "Hi there"}]},
    "system": {
        "messages": [
            {"role": "system", "content": "You are a pirate."},
            {"role": "user", "content": " What's 2 + 2? "},
        ],
    },
    "turns": {
        "messages": [
            {"role": "user", "content": "Name a colour."},
            {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nBlue"},
            {"role": "user", "content": "Another, \"quoted\" & <marked>"},
            {"role": "assistant", "content": "Grün 🙂"},
            {"role": "user", "content": "Thanks\n"},
        ],
        "extra": {"enable_thinking": False},
    },
    "tools": {
        "messages": [
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "Weather in Köln?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "abcdefghi",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": {"city": "Köln", "unit": "c"}},
                    }
                ],
            },
            {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "{\"temp\": 21.5}"},
        ],
        "tools": TOOLS,
        "documents": [
            {"title": "Köln", "text": "A city on the Rhine."},
            {"title": "Rhine", "text": "A river."},
        ],
    },
}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def conversations():
    made = {}
    for path in sorted((FOLDER / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        made[path.stem] = {
            name: render(
                template, c["messages"], c.get("tools"), c.get("documents"),
                date_string="26 Jul 2024", **TOKENS, **c.get("extra", {}),
            )
            for name, c in CONVERSATIONS.items()
        }

    return {"tokens": TOKENS, "conversations": CONVERSATIONS, "templates": made}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, made in [("snippets", snippets()), ("conversations", conversations())]:
        text = json.dumps(made, ensure_ascii=False, indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
