//! Text that shows as what it is: on one line, and nothing in it unseen. A plan is agreed to by whoever
//! reads it, and what sites and guests say is in it.

/// No control character, and nothing that has no width or turns what follows (Unicode Standard Annex
/// 9, section 2; the tags of block E0000).
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_hidden(c))
}

const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// The same in one line: a platform's messages may have several.
pub(crate) fn plain(text: &str) -> String {
    let shown = text.chars().filter(|c| !is_hidden(*c));
    shown.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_platform_says_in_several_lines_is_one() {
        let said = "pool a does not answer:\n\tmount: \u{1b}[31mbad\u{202e}";
        assert!(!is_plain(said));
        assert_eq!(plain(said), "pool a does not answer:  mount:  [31mbad");
        assert!(is_plain(&plain(said)) && is_plain("Größe 日本 👩🏽"));
    }
}
