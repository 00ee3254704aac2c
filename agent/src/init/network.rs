//! The helper's own card, for direct connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use thiserror::Error;

use super::arguments::Network;
use super::dhcp::{self, DhcpError};
use crate::inspect::Tree;

/// A card may appear a little after its driver.
const CARD_WITHIN: Duration = Duration::from_secs(10);

/// A switch with spanning tree takes its time; most cards have carrier at once.
const CARRIER_WITHIN: Duration = Duration::from_secs(5);

const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Error)]
pub enum NetworkError {
    #[error("this machine has no network card")]
    NoCard,

    #[error("cannot talk to the kernel about the network")]
    Socket(#[source] std::io::Error),

    #[error("cannot {doing} {card}")]
    Configure {
        doing: &'static str,
        card: String,
        #[source]
        cause: rtnetlink::Error,
    },

    #[error(transparent)]
    Dhcp(#[from] DhcpError),
}

/// Configures the first card. Says what it has afterwards.
pub async fn configure(tree: &Tree, wanted: Network) -> Result<String, NetworkError> {
    let card = first_card(tree).await.ok_or(NetworkError::NoCard)?;
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
    // Ends with the handle, when this function returns.
    tokio::spawn(connection);
    let index: u32 =
        tree.number(format!("sys/class/net/{card}/ifindex")).ok_or(NetworkError::NoCard)?;
    let doing = |doing| {
        let card = card.clone();
        move |cause| NetworkError::Configure { doing, card, cause }
    };
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(doing("bring up"))?;
    wait_for_carrier(tree, &card).await;
    let wanted = match wanted {
        Network::Dhcp => {
            let mac = mac(tree, &card).ok_or(NetworkError::NoCard)?;
            let lease = dhcp::lease(&card, mac, std::process::id() ^ index).await?;
            Network::leased(lease.address, lease.prefix, lease.gateway)
        }
        fixed @ Network::Static { .. } => fixed,
    };
    let Network::Static { address, prefix, gateway } = wanted else {
        return Err(NetworkError::NoCard);
    };
    let added = handle.address().add(index, address, prefix).execute().await;
    added.map_err(doing("give an address to"))?;
    if let Some(gateway) = gateway {
        route(&handle, index, gateway).await.map_err(doing("set the route over"))?;
    }
    let gateway = gateway.map(|gateway| format!(", gateway {gateway}")).unwrap_or_default();
    Ok(format!("{card}: {address}/{prefix}{gateway}"))
}

async fn route(handle: &Handle, index: u32, gateway: IpAddr) -> Result<(), rtnetlink::Error> {
    match gateway {
        IpAddr::V4(gateway) => {
            let route =
                RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(gateway);
            handle.route().add(route.build()).execute().await
        }
        IpAddr::V6(gateway) => {
            let route =
                RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(gateway);
            handle.route().add(route.build()).execute().await
        }
    }
}

async fn first_card(tree: &Tree) -> Option<String> {
    let looks = CARD_WITHIN.as_millis() / LOOK_EVERY.as_millis();
    for _ in 0..looks {
        let mut names = tree.names("sys/class/net").into_iter();
        if let Some(card) = names.find(|name| tree.exists(format!("sys/class/net/{name}/device"))) {
            return Some(card);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

async fn wait_for_carrier(tree: &Tree, card: &str) {
    let looks = CARRIER_WITHIN.as_millis() / LOOK_EVERY.as_millis();
    for _ in 0..looks {
        if tree.text(format!("sys/class/net/{card}/carrier")).as_deref() == Some("1") {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tracing::warn!(card, "no carrier");
}

fn mac(tree: &Tree, card: &str) -> Option<[u8; 6]> {
    let text = tree.text(format!("sys/class/net/{card}/address"))?;
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}
