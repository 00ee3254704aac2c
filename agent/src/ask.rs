//! A coordinator of the simplest kind: requests in, messages out, as lines of JSON. For tests of
//! the built program, and for looking at an agent by hand.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use transfer::control::{self, ControlReader};
use transfer::meet;
use transfer::secure::{self, Identity, Trust};
use units::MigrationId;
use wire::control::{CONTROL_VERSION, Call, Message, Request};
use wire::purpose::Purpose;

/// A helper may still be booting.
const MEET_WITHIN: Duration = Duration::from_secs(300);

/// Asks the agent behind a unix socket whatever comes on standard input, one request per line, and
/// writes whatever it says. Ends with the agent, or a moment after standard input: when the last
/// request is answered.
pub async fn run(socket: PathBuf, migration: MigrationId) -> Result<()> {
    let identity = Identity::generate();
    let stream = UnixStream::connect(&socket).await;
    let stream = stream.with_context(|| format!("cannot connect to {}", socket.display()))?;
    let stream = meet::open(stream, Purpose::Control, MEET_WITHIN).await?;
    let secured = secure::connect(stream, &identity, Trust::FirstSeen).await?;
    let (reader, mut writer) = tokio::io::split(secured.stream);
    let mut reader = ControlReader::new(reader);
    let coordinator_key = identity.spki_hex();
    let hello = Request::Hello { version: CONTROL_VERSION, migration, coordinator_key };
    control::write(&mut writer, &Call { id: 0, request: hello }).await?;

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let (mut asked, mut answered, mut more) = (1_u64, 0_u64, true);
    while more || answered < asked {
        tokio::select! {
            message = reader.next::<Message>() => {
                let Some(message) = message? else { bail!("the agent closed the stream") };
                answered += u64::from(matches!(message, Message::Reply { .. }));
                print(&message).await?;
            }
            line = lines.next_line(), if more => match line? {
                Some(line) if line.trim().is_empty() => {}
                Some(line) => {
                    let request = serde_json::from_str(&line).context("not a request")?;
                    control::write(&mut writer, &Call { id: asked, request }).await?;
                    asked += 1;
                }
                None => more = false,
            },
        }
    }
    Ok(())
}

async fn print(message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut stdout = tokio::io::stdout();
    stdout.write_all(&line).await?;
    stdout.flush().await?;
    Ok(())
}
