//! The allow-list: what may be in a definition, as `allowed.txt` has it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::node::Element;

/// Characters of a name or a text that is carried over, in bytes.
const TEXT_MAX: usize = 4096;

/// What becomes of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    Keep(Kept),
    /// Belongs to the host, or says nothing to the guest.
    Leave,
    /// The same, and its operator should know.
    LeaveAndWarn,
    Refuse,
    /// Made anew by hand.
    Make,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    attributes: BTreeMap<String, Kind>,
    text: Option<Kind>,
    children: BTreeMap<String, Rule>,
}

/// What a value may be. Anything else refuses the VM: it is neither guessed at nor passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Letters, digits and `_ . + : , -`, 64 at most: names of models, machines, features.
    Word,
    Number,
    /// The same, with a sign or without.
    Integer,
    /// `0x…`, or a number.
    Hex,
    Uuid,
    Mac,
    /// Of a VM: one line without `/`.
    Name,
    /// Of people for people, one line or several.
    Free,
    OneOf(Vec<String>),
}

/// What is to be said of a definition: paths like `devices/hostdev`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub refused: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

impl Findings {
    pub fn refuse(&mut self, path: &str, why: impl Into<String>) {
        self.refused.push((path.to_owned(), why.into()));
    }
}

/// The rules of `<domain>`.
pub fn domain() -> &'static Kept {
    static DOMAIN: LazyLock<Kept> = LazyLock::new(|| root(include_str!("allowed.txt")));
    &DOMAIN
}

/// The rules of `<qemu-migration>`.
pub fn cookie() -> &'static Kept {
    static COOKIE: LazyLock<Kept> = LazyLock::new(|| root(include_str!("cookie.txt")));
    &COOKIE
}

fn root(text: &str) -> Kept {
    match parse(text).into_iter().next() {
        Some((_, Rule::Keep(root))) => root,
        other => unreachable!("a list begins with its root: {other:?}"),
    }
}

impl Kept {
    pub fn rule(&self, child: &str) -> Option<&Rule> {
        self.children.get(child).or_else(|| self.children.get("*"))
    }

    /// What is kept of an element by these rules. `make` is asked for what is made by hand.
    pub fn keep(
        &self,
        element: &Element,
        path: &str,
        found: &mut Findings,
        make: &mut impl FnMut(&Element, &str, &mut Findings) -> Vec<Element>,
    ) -> Element {
        let mut kept = Element::new(&element.name);
        for (name, value) in &element.attributes {
            match self.attributes.get(name) {
                Some(kind) if kind.takes(value) => {
                    kept.attributes.push((name.clone(), value.clone()));
                }
                Some(_) => found.refuse(path, format!("{name} is no value that we know")),
                // The host's own: indexes, labels, ports that it gave.
                None => {}
            }
        }
        match &self.text {
            Some(kind) if kind.takes(&element.text) => kept.text.clone_from(&element.text),
            None if element.text.is_empty() => {}
            _ => found.refuse(path, "its content is no value that we know"),
        }
        for child in &element.children {
            let path =
                if path.is_empty() { child.name.clone() } else { format!("{path}/{}", child.name) };
            match self.rule(&child.name) {
                Some(Rule::Keep(rules)) => {
                    kept.children.push(rules.keep(child, &path, found, make));
                }
                Some(Rule::Leave) => {}
                Some(Rule::LeaveAndWarn) => {
                    found.warnings.push(format!("{path} is left behind"));
                }
                Some(Rule::Make) => kept.children.extend(make(child, &path, found)),
                Some(Rule::Refuse) => found.refuse(&path, "it cannot go to another host"),
                None => found.refuse(&path, "we do not know what it is to the guest"),
            }
        }
        kept
    }
}

impl Kind {
    pub fn takes(&self, value: &str) -> bool {
        let all = |allowed: fn(u8) -> bool, max: usize| {
            !value.is_empty() && value.len() <= max && value.bytes().all(allowed)
        };
        let digits = |text: &str| {
            !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit())
        };
        match self {
            Self::Word => all(|b| b.is_ascii_alphanumeric() || b"_.+:,-".contains(&b), 64),
            Self::Number => digits(value),
            Self::Integer => digits(value.strip_prefix('-').unwrap_or(value)),
            Self::Hex => match value.strip_prefix("0x") {
                Some(hex) => {
                    (1..=16).contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit())
                }
                None => digits(value),
            },
            Self::Uuid => value.len() == 36 && all(|b| b.is_ascii_hexdigit() || b == b'-', 36),
            Self::Mac => value.len() == 17 && all(|b| b.is_ascii_hexdigit() || b == b':', 17),
            Self::Name => {
                (1..=255).contains(&value.len())
                    && !value.chars().any(|c| c.is_control() || c == '/')
            }
            Self::Free => {
                value.len() <= TEXT_MAX
                    && !value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
            }
            Self::OneOf(words) => words.iter().any(|word| word == value),
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "word" => Self::Word,
            "num" => Self::Number,
            "int" => Self::Integer,
            "hex" => Self::Hex,
            "uuid" => Self::Uuid,
            "mac" => Self::Mac,
            "name" => Self::Name,
            "free" => Self::Free,
            words => Self::OneOf(words.split('|').map(str::to_owned).collect()),
        }
    }
}

/// Elements by name, with what is nested in them.
fn parse(text: &str) -> BTreeMap<String, Rule> {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| (line.len() - line.trim_start().len(), line.trim()))
        .collect();
    nested(&mut lines.as_slice(), 0)
}

fn nested(lines: &mut &[(usize, &str)], depth: usize) -> BTreeMap<String, Rule> {
    let mut rules = BTreeMap::new();
    while let Some(((indent, line), rest)) = lines.split_first()
        && *indent >= depth
    {
        assert!(*indent == depth, "no element is over {line}");
        *lines = rest;
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let (name, rule) = match name.split_at(1) {
            ("-", name) => (name, Rule::Leave),
            ("?", name) => (name, Rule::LeaveAndWarn),
            ("!", name) => (name, Rule::Refuse),
            ("=", name) => (name, Rule::Make),
            _ => (name, Rule::Keep(Kept::default())),
        };
        let rule = match rule {
            Rule::Keep(mut kept) => {
                for word in words {
                    match (word.strip_prefix(':'), word.split_once('=')) {
                        (Some(kind), _) => kept.text = Some(Kind::parse(kind)),
                        (None, Some((attribute, kind))) => {
                            kept.attributes.insert(attribute.to_owned(), Kind::parse(kind));
                        }
                        (None, None) => unreachable!("{word} in {line}"),
                    }
                }
                kept.children = nested(lines, depth + 2);
                Rule::Keep(kept)
            }
            other => other,
        };
        let twice = rules.insert(name.to_owned(), rule);
        assert!(twice.is_none(), "{name} is there twice");
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_read_and_refuses_what_it_does_not_name() {
        let domain = domain();
        let Some(Rule::Keep(devices)) = domain.rule("devices") else { panic!("no devices") };
        assert_eq!(devices.rule("hostdev"), Some(&Rule::Refuse));
        assert_eq!(devices.rule("disk"), Some(&Rule::Make));
        assert_eq!(devices.rule("futuristic"), None);
        assert_eq!(domain.rule("seclabel"), Some(&Rule::Leave));
    }

    #[test]
    fn values_are_what_their_kind_says() {
        let takes = |kind: &str, value: &str| Kind::parse(kind).takes(value);
        assert!(takes("word", "pc-q35-7.2") && takes("word", "0-3,7") && takes("hex", "0x1f"));
        assert!(!takes("word", "") && !takes("word", "a b") && !takes("word", "../x"));
        assert!(!takes("hex", "0x") && !takes("num", "-1") && !takes("num", "1e9"));
        assert!(takes("name", "db & more") && !takes("name", "a/b") && !takes("name", "a\nb"));
        assert!(takes("on|off", "on") && !takes("on|off", "ON"));
    }
}
