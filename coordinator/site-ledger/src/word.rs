//! Somebody's word, as it is taken and recorded, whoever asks for it.

/// What it rests on: a word stands for something only with that.
///
/// # Errors
/// Where nothing is said.
pub fn parse_why(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say how you know it: it is recorded with your name".to_owned()),
        why => Ok(why.to_owned()),
    }
}

/// Whose it is: who logged in, else the number of the user. A name that nobody gave is none.
pub fn operator() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    let named = user.ok().filter(|name| !name.trim().is_empty());
    named.unwrap_or_else(|| format!("the user of id {}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_needs_a_reason() {
        assert_eq!(parse_why(" it burnt down ").as_deref(), Ok("it burnt down"));
        assert!(parse_why("").is_err() && parse_why(" \t").is_err());
    }
}
