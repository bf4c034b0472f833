//! Chat templates by grammar.

mod words;

use crate::Choices;
use words::{ATTRIBUTES, FILTERS, METHODS, NUMBERS, OPERATORS, STRINGS, TESTS, VARIABLES};

const LONGEST: usize = 1 << 14;

/// A template in construction. Its length is bounded, as each choice may add several others.
struct Writer<'a, 'b> {
    from: &'a mut Choices<'b>,
    out: String,
    depth: usize,
}

/// A template.
pub fn template(from: &mut Choices<'_>) -> String {
    let mut writer = Writer {
        from,
        out: String::new(),
        depth: 0,
    };
    while !writer.from.is_empty() && writer.out.len() < LONGEST {
        writer.statement();
    }
    writer.out
}

impl Writer<'_, '_> {
    fn is_full(&self) -> bool {
        self.depth > 12 || self.out.len() > LONGEST
    }

    fn add(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn add_one(&mut self, of: &[&str]) {
        let text = self.from.one(of);
        self.add(text);
    }

    fn body(&mut self) {
        self.depth += 1;
        for _ in 0..self.from.below(4) {
            if !self.is_full() {
                self.statement();
            }
        }
        self.depth -= 1;
    }

    fn open(&mut self, text: &str) {
        let dash = if self.from.byte() > 200 { "-" } else { "" };
        self.out.push_str(&format!("{{%{dash} {text} "));
    }

    fn close(&mut self) {
        let dash = if self.from.byte() > 200 { "-" } else { "" };
        self.out.push_str(&format!(" {dash}%}}"));
    }

    fn tag(&mut self, text: &str) {
        self.open(text);
        self.close();
    }

    fn statement(&mut self) {
        match self.from.below(20) {
            0..=5 => {
                self.add("{{ ");
                self.expression();
                self.add(" }}");
            }
            6 | 7 => {
                let text = self.from.text();
                self.add(&text);
            }
            8 | 9 => self.branch(),
            10..=12 => self.repetition(),
            13 | 14 => self.set(),
            15 => self.function(),
            16 => {
                let call =
                    self.from
                        .one(&["call f()", "call(x) f(1)", "call f(x)", "call joiner()"]);
                self.tag(call);
                self.body();
                self.tag("endcall");
            }
            17 => self.filtered(),
            18 => self.other(),
            _ => self.add_one(&[
                "{% break %}",
                "{% continue %}",
                "{# c #}",
                "{%",
                "}}",
                "{{",
                "{#",
                "\n",
                "%}",
            ]),
        }
    }

    fn branch(&mut self) {
        self.open("if");
        self.expression();
        self.close();
        self.body();
        if self.from.flag() {
            self.open("elif");
            self.expression();
            self.close();
            self.body();
        }
        if self.from.flag() {
            self.tag("else");
            self.body();
        }
        self.tag("endif");
    }

    fn repetition(&mut self) {
        self.open("for");
        self.add_one(&["m", "x", "a, b", "(a, b)", "x, (a, b)", "loop"]);
        self.add(" in ");
        match self.from.below(4) {
            0 => self.expression(),
            1 => self.add("messages"),
            _ => {
                self.add("range(");
                self.add_one(&NUMBERS);
                self.add(")");
            }
        }
        if self.from.byte() > 200 {
            self.add(" if ");
            self.expression();
        }
        if self.from.byte() > 220 {
            self.add(" recursive");
        }
        self.close();
        self.body();
        if self.from.byte() > 220 {
            self.tag("else");
            self.body();
        }
        self.tag("endfor");
    }

    fn set(&mut self) {
        self.open("set");
        self.add_one(&["ns.v", "x", "ns.w", "a", "ns", "a, b", "m"]);
        match self.from.below(6) {
            0 => {
                self.close();
                self.body();
                self.tag("endset");
            }
            1 => {
                self.add(" = namespace(v=");
                self.expression();
                self.add(", w=1)");
                self.close();
            }
            _ => {
                self.add(" = ");
                self.expression();
                self.close();
            }
        }
    }

    fn function(&mut self) {
        self.open("macro");
        self.add_one(&["f()", "f(x)", "f(x, y=1)", "f(x, y=f)", "g(x)"]);
        self.close();
        self.body();
        self.tag("endmacro");
        self.add("{{ ");
        self.add_one(&[
            "f()",
            "f(1)",
            "f(f)",
            "f(x=messages)",
            "f('a', 'b', 'c')",
            "g(f(1))",
        ]);
        self.add(" }}");
    }

    fn filtered(&mut self) {
        self.open("filter");
        self.add_one(&FILTERS);
        if self.from.flag() {
            self.arguments();
        }
        self.close();
        self.body();
        self.tag("endfilter");
    }

    fn other(&mut self) {
        let (open, close) = self.from.pick(&[
            ("generation", "endgeneration"),
            ("raw", "endraw"),
            ("with x = 1", "endwith"),
            ("autoescape true", "endautoescape"),
            ("block c", "endblock"),
        ]);
        self.tag(open);
        self.body();
        self.tag(close);
    }

    fn arguments(&mut self) {
        const NAMED: [&str; 9] = [
            "attribute",
            "default",
            "reverse",
            "indent",
            "width",
            "d",
            "x",
            "by",
            "start",
        ];
        self.add("(");
        self.depth += 1;
        for number in 0..self.from.below(4) {
            if number > 0 {
                self.add(", ");
            }
            if self.from.byte() > 180 {
                self.add_one(&NAMED);
                self.add("=");
            }
            self.expression();
        }
        self.depth -= 1;
        self.add(")");
    }

    fn expression(&mut self) {
        const FUNCTIONS: [&str; 8] = [
            "range",
            "dict",
            "namespace",
            "cycler",
            "joiner",
            "f",
            "loop",
            "strftime_now",
        ];
        if self.is_full() {
            return self.atom();
        }
        self.depth += 1;
        match self.from.below(16) {
            0..=4 => self.atom(),
            5..=7 => self.binary(),
            8 | 9 => {
                self.expression();
                self.add(" | ");
                self.add_one(&FILTERS);
                if self.from.flag() {
                    self.arguments();
                }
            }
            10 => {
                self.expression();
                self.add(" is ");
                self.add_one(&TESTS);
                if self.from.byte() > 200 {
                    self.arguments();
                }
            }
            11 => {
                self.primary();
                self.add(".");
                self.add_one(&METHODS);
                self.arguments();
            }
            12 => {
                self.primary();
                self.add(".");
                self.add_one(&ATTRIBUTES);
            }
            13 => {
                self.primary();
                self.subscript();
            }
            14 => self.container(),
            _ => {
                self.add_one(&["not ", "-", "+", ""]);
                self.add_one(&FUNCTIONS);
                self.arguments();
            }
        }
        self.depth -= 1;
    }

    fn binary(&mut self) {
        self.add("(");
        self.expression();
        let operator = self.from.one(&OPERATORS);
        self.add(&format!(" {operator} "));
        self.expression();
        if operator == "if" && self.from.flag() {
            self.add(" else ");
            self.expression();
        }
        self.add(")");
    }

    fn primary(&mut self) {
        self.add("(");
        self.expression();
        self.add(")");
    }

    /// `[index]`, or a slice with up to three bounds.
    fn subscript(&mut self) {
        self.add("[");
        let bounds = 1 + self.from.below(3);
        for number in 0..bounds {
            if number > 0 {
                self.add(":");
            }
            if bounds == 1 || self.from.flag() {
                self.expression();
            }
        }
        self.add("]");
    }

    fn container(&mut self) {
        let (open, after, close, is_dict) = self.from.pick(&[
            ("[", ", ", "]", false),
            ("(", ", ", ")", false),
            ("{", ", ", "}", true),
        ]);
        self.add(open);
        for _ in 0..self.from.below(4) {
            if is_dict {
                self.atom();
                self.add(": ");
            }
            self.expression();
            self.add(after);
        }
        self.add(close);
    }

    fn atom(&mut self) {
        match self.from.below(10) {
            0..=3 => self.add_one(&VARIABLES),
            4 | 5 => self.add_one(&NUMBERS),
            6..=8 => self.add_one(&STRINGS),
            _ => self.add_one(&[
                "true", "false", "none", "True", "None", "[]", "{}", "messages",
            ]),
        }
    }
}
