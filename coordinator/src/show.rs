//! What the operator sees: results on stdout, all else on stderr.

mod bars;
mod live;
mod plan;

use std::io::Write;

pub use bars::watch;
pub use live::{LiveWatch, live_done, live_sentence, live_text};
pub use plan::{plan_text, seconds};

/// One line of result. A closed pipe is no error: whoever read has seen enough.
pub fn line(text: &str) {
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// Anything that is not the result.
pub fn error(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// As [`ask`], for whoever must not stand still meanwhile. Its thread may wait for ever.
pub async fn asked(question: &'static str) -> bool {
    let (said, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || said.send(ask(question)));
    answer.await.unwrap_or(false)
}

/// Asks on the terminal. Without one the answer is no, and what to type instead is said.
pub fn ask(question: &str) -> bool {
    use std::io::IsTerminal;

    if !std::io::stdin().is_terminal() {
        error(
            "not asked, because there is no terminal\nhint: say --yes to go on without being asked",
        );
        return false;
    }
    drop(write!(std::io::stderr(), "{question} [y/N] "));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}
