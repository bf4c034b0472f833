//! The language of chat templates: Jinja2 over Python's values, in the sandbox that transformers
//! renders them in (`transformers/utils/chat_template_utils.py`:
//! `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, `break` and `continue`, its
//! own `tojson`, `raise_exception`, `strftime_now` and `generation`).
//!
//! Why not an existing engine: the rendered text is the model's prompt, so one space or quote that
//! prints differently changes what the model sees. Much of that is Python, not Jinja2 (how values
//! print, `%`, slices, methods of `str` and `dict`, the order of keys), and it cannot be added on
//! top of an engine whose values follow another language.
//!
//! The [`lexer`] makes tokens, the [`parser`] and [`expressions`] make a syntax tree ([`ast`]), and
//! the [`interpreter`] walks it once for each rendering, within a [`budget`] of work and output and a
//! bound on what it keeps ([`held`]).

mod args;
mod ast;
mod attributes;
mod budget;
mod calls;
mod chars;
mod containers;
mod convert;
mod dict;
mod error;
mod eval;
mod expressions;
mod filters;
mod format;
mod held;
mod interpreter;
mod lexer;
mod literals;
mod numbers;
mod operands;
mod ops;
mod parser;
mod percent;
mod predicates;
mod print;
mod scopes;
mod strings;
mod targets;
mod value;

pub(crate) use error::Error;

use interpreter::Interpreter;
use std::sync::Arc;
use value::Value;

/// A template that can be rendered.
#[derive(Debug)]
pub(crate) struct Template {
    body: Vec<ast::Stmt>,
}

impl Template {
    pub(crate) fn new(source: &str) -> Result<Self, Error> {
        Ok(Self {
            body: parser::parse(source)?,
        })
    }

    /// Renders the template with these variables; a later one hides an earlier one, or a global
    /// function, of the same name.
    pub(crate) fn render<'a>(
        &self,
        variables: impl Iterator<Item = (&'a str, &'a serde_json::Value)>,
    ) -> Result<String, Error> {
        let functions = calls::FUNCTIONS
            .iter()
            .map(|function| (function.name(), Value::Function(*function)));
        let mut context: Vec<(Arc<str>, Value)> = functions
            .map(|(name, value)| (name.into(), value))
            .collect();
        for (name, json) in variables {
            let value = value::from_json(json)?;
            match context.iter_mut().find(|(known, _)| **known == *name) {
                Some((_, old)) => *old = value,
                None => context.push((name.into(), value)),
            }
        }
        Interpreter::new(context).render(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, Error> {
        let long = serde_json::Value::from("word ".repeat(1 << 20));
        Template::new(template)?.render([("long", &long)].into_iter())
    }

    fn error(template: &str) -> String {
        render(template).unwrap_err().to_string()
    }

    #[test]
    fn templates_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Template>();
    }

    #[test]
    fn templates_that_do_not_end_are_stopped() {
        for template in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% for a in range(100000) %}{{ 'x' in long }}{% endfor %}",
            "{% for a in range(100000) %}{% set b = ('ab' * 100000) | sort %}{% endfor %}",
            "{% for a in range(100000) %}{% set b = range(100000) | list %}{% endfor %}",
            "{% for a in range(100000) %}{{ range(100000) | sum == 1 }}{% endfor %}",
            "{% for a in range(100000) %}{{ long.upper() == long }}{% endfor %}",
            "{% for a in range(100000) %}{{ long | wordcount }}{% endfor %}",
            "{% set l = range(100000) | list %}{% for a in range(100000) %}{{ a in l }}{% endfor %}",
            "{% set ns = namespace(s='') %}{% for a in range(100000) %}{% set ns.s = ns.s ~ 'abcdefghijklmnop' * 64 %}{% endfor %}",
        ] {
            assert!(
                error(template).contains("it does not come to an end"),
                "{template}"
            );
        }
    }

    #[test]
    fn strings_and_lists_that_are_too_large_are_refused_before_they_are_made() {
        for template in [
            "{{ 'a' * 10 ** 9 }}",
            "{{ 'ab' * 10 ** 30 }}",
            "{{ 'a'.center(10 ** 9) }}",
            "{{ 'a'.ljust(10 ** 9) ~ 'a'.rjust(10 ** 9) }}",
            "{{ 'a'.zfill(10 ** 30) }}",
            "{{ '\\t'.expandtabs(10 ** 9) }}",
            "{{ 'a' | center(10 ** 9) }}",
            "{{ 'a\\nb' | indent(10 ** 9) }}",
            "{{ long | replace('', long) }}",
            "{{ long.replace('w', long) }}",
            "{{ 'a b' | wordwrap(1, wrapstring='x' * 2 ** 26) ~ 'y' }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ '%.1000000000f' % 1 }}",
            "{{ '%*s' % (10 ** 9, '') }}",
            "{{ '{:1000000000}'.format(1) }}",
            "{{ '{:.1000000000f}'.format(1.5) }}",
            "{{ '{:01000000000,d}'.format(1) }}",
            "{{ [[1]] | tojson(indent=10 ** 9) }}",
            "{{ '%s' % long * 20 }}",
            "{% for a in range(100000) %}{{ 'x' * 1000000 }}{% endfor %}",
        ] {
            let error = error(template);
            assert!(
                error.contains("it writes more than 32 MiB"),
                "{template}: {error}"
            );
        }

        assert!(error("{{ long | sort }}").contains("a list of more than"));
        assert!(error("{{ [1] * 10 ** 9 }}").contains("a list of more than"));
        assert!(error("{{ long | join(long) }}").contains("a list of more than"));
        assert!(error("{{ long.join(long) }}").contains("a list of more than"));
        assert!(error("{{ [1] | batch(10 ** 9, 0) | list }}").contains("a list of more than"));
        assert!(error("{{ [1] | slice(10 ** 9) | list }}").contains("a list of more than"));
        assert!(error("{{ ('x ' * 10 ** 6) | wordwrap }}").contains("a list of more than"));
        assert!(
            error("{{ ('{:' ~ '0' * 2 ** 21 ~ '}').format(1) }}").contains("a list of more than")
        );
        assert!(error("{{ range(10 ** 9) }}").contains("Range too big"));
        assert!(error("{{ 10 ** 1000 }}").contains("more than 127 bits"));
        assert!(error("{{ strftime_now('%Y' * 10000) }}").contains("1000 bytes"));
    }

    #[test]
    fn templates_and_values_that_nest_too_deeply_are_refused() {
        let nested = |open: &str, inner: &str, close: &str, count: usize| {
            format!("{}{inner}{}", open.repeat(count), close.repeat(count))
        };
        for template in [
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
            "{% macro f(x) %}{% if x %}{% for y in [x] %}{{ (f(y) | upper) ~ '' }}{% endfor %}{% endif %}{% endmacro %}{{ f(1) }}".to_owned(),
            "{% set l = [1] %}{% for x in l recursive %}{{ loop(l) }}{% endfor %}".to_owned(),
            "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}".to_owned(),
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_owned(),
            "{% set ns = namespace(v=1) %}{% for i in range(1000) %}{% set ns.v = [ns.v] %}{% endfor %}".to_owned(),
            "{% set ns = namespace(v=1) %}{% for i in range(1000) %}{% set ns.v = {'a': ns.v} %}{% endfor %}".to_owned(),
            format!("{{{{ {} }}}}", nested("(", "1", ")", 10_000)),
            format!("{{{{ {} }}}}", nested("[", "1", "]", 10_000)),
            format!("{{{{ {}1 }}}}", "-".repeat(10_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(10_000)),
            format!("{{{{ 1{} }}}}", " + 1".repeat(10_000)),
            format!("{{{{ 1{} }}}}", " | string".repeat(10_000)),
            format!("{{{{ x{} }}}}", ".a".repeat(10_000)),
            format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(10_000)),
            nested("{% if 1 %}", "x", "{% endif %}", 10_000),
            format!("{{% for {} in x %}}{{% endfor %}}", nested("(", "a", ",)", 10_000)),
        ] {
            let error = error(&template);
            let start = &template[..template.len().min(80)];
            assert!(["deep", "too many operations"].iter().any(|word| error.contains(word)), "{start}: {error}");
        }
    }

    /// A value that contains the same value twice at every level is small in memory but exponential
    /// to walk.
    #[test]
    fn walking_values_that_share_their_parts_is_limited() {
        let doubled = "{% set ns = namespace(v='x', w='x') %}{% for i in range(100) %}{% set ns.v = [ns.v, ns.v] %}\
                       {% set ns.w = [ns.w, ns.w] %}{% endfor %}";
        for use_of in [
            "{{ ns.v }}",
            "{{ ns.v == ns.w }}",
            "{{ ns.v | tojson }}",
            "{{ ns.v < ns.w }}",
            "{{ ns.v | pprint }}",
        ] {
            assert!(
                error(&format!("{doubled}{use_of}")).contains("does not come to an end"),
                "{use_of}"
            );
        }
    }

    #[test]
    fn long_conversations_are_within_the_limits() {
        let message = serde_json::json!({ "role": "user", "content": "word ".repeat(200) });
        let messages = serde_json::Value::Array(vec![message; 20_000]);
        let template = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 2) %}\
                        {{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}";
        let text = Template::new(template)
            .unwrap()
            .render([("messages", &messages)].into_iter())
            .unwrap();
        assert!(text.len() > 20_000_000);
    }
}
