//! The agents' end of a control stream, as the real ones speak it.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use transfer::control::{self, ControlReader};
use transfer::meet;
use transfer::secure::{self, Identity, Trust};
use wire::control::{
    AgentRole, CONTROL_VERSION, Call, ErrorCode, Event, Failure, Message, Reply, Request,
};
use wire::purpose::Purpose;

use crate::points::Lost;

/// One agent, for as long as it runs.
pub struct Agent {
    pub role: AgentRole,
    pub boot_id: String,
    /// Bytes that each data stream carries.
    carried: usize,
    identity: Identity,
    /// The first coordinator and its migration; every other is refused.
    owner: Mutex<Option<(String, String)>>,
}

impl Agent {
    pub fn new(role: AgentRole, boot_id: String, carried: usize) -> Arc<Self> {
        let owner = Mutex::new(None);
        Arc::new(Self { role, boot_id, carried, identity: Identity::generate(), owner })
    }

    /// Serves one stream to its end. Data streams are held open, with as much in them as was asked for:
    /// what they would carry is copied at once when a round is asked for. Where an answer gets lost, the stream breaks.
    pub async fn serve<A, F>(self: Arc<Self>, stream: DuplexStream, answer: A)
    where
        A: Fn(Request) -> F + Send + Sync,
        F: Future<Output = Result<(Result<Reply, Failure>, Vec<Event>), Lost>> + Send,
    {
        let Ok((purpose, met)) = meet::accept(stream).await else { return };
        if purpose != Purpose::Control {
            let (mut reader, mut writer) = tokio::io::split(met);
            let sends = async {
                let _sent = writer.write_all(&vec![0; self.carried]).await;
            };
            let reads = async {
                let mut buffer = [0; 4096];
                while reader.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            };
            tokio::join!(sends, reads);
            return;
        }
        let Ok(secured) = secure::accept(met, &self.identity, Trust::FirstSeen).await else {
            return;
        };
        let (reader, mut writer) = tokio::io::split(secured.stream);
        let mut reader = ControlReader::new(reader);
        while let Ok(Some(Call { id, request })) = reader.next::<Call>().await {
            let (result, events) = match request {
                Request::Hello { migration, coordinator_key, .. } => {
                    (self.hello(coordinator_key, migration.to_string()), Vec::new())
                }
                request => match answer(request).await {
                    Ok(answered) => answered,
                    Err(Lost) => return,
                },
            };
            let refused = result.as_ref().is_err_and(|f| f.code == ErrorCode::Foreign);
            if control::write(&mut writer, &Message::Reply { id, result }).await.is_err() {
                return;
            }
            for event in events {
                if control::write(&mut writer, &Message::Event(event)).await.is_err() {
                    return;
                }
            }
            if refused {
                return;
            }
        }
    }

    fn hello(&self, key: String, migration: String) -> Result<Reply, Failure> {
        let asked = (key, migration);
        let mut owner = self.owner.lock().unwrap();
        if owner.get_or_insert_with(|| asked.clone()) != &asked {
            return Err(failure(ErrorCode::Foreign, "another coordinator's"));
        }
        Ok(Reply::Hello {
            version: CONTROL_VERSION,
            role: self.role,
            build: "sim".to_owned(),
            key: self.identity.spki_hex(),
            boot_id: self.boot_id.clone(),
        })
    }
}

pub fn failure(code: ErrorCode, text: &str) -> Failure {
    Failure { code, text: text.to_owned(), hint: None }
}
