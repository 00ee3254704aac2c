//! Words for a POSIX shell.

/// `word` so that every shell reads it as one word with nothing expanded.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The words quoted, with spaces between.
pub(crate) fn join<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// Text of the guest made fit for a message: printable, and its last `limit` characters at most.
/// A guest is hostile until shown otherwise; its escape sequences stay out of terminals.
pub(crate) fn printable_tail(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean: Vec<char> = text
        .trim()
        .chars()
        .map(|c| if c == '\n' || !c.is_control() { c } else { '\u{fffd}' })
        .collect();
    clean[clean.len().saturating_sub(limit)..].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_gives_every_quoted_word_back() {
        for word in
            ["", "plain", "a b", "it's", "$HOME", "`id`", "a\nb", "*", "\\", "é", "-n", "!!"]
        {
            let script = format!("printf %s {}", quote(word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn escape_sequences_do_not_reach_a_message() {
        assert_eq!(printable_tail(b"a\x1b[31mb\r\nc", 100), "a\u{fffd}[31mb\u{fffd}\nc");
    }

    #[test]
    fn a_long_text_is_cut_at_its_front() {
        assert_eq!(printable_tail("abcdéf".as_bytes(), 3), "déf");
    }
}
