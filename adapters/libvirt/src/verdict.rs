//! What libvirt's errors mean: a table from code and message to kind, remedy and hint.

use std::time::Duration;

use site::{Remedy, SiteErrorKind};
use virt::error::{
    Error as Said, ErrorDomain, ErrorDomainEnum, ErrorNumber as Number, ErrorNumberEnum,
};

use crate::fault::Op;

/// A libvirt error, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub kind: SiteErrorKind,
    pub what: &'static str,
    pub hint: Option<&'static str>,
    pub remedy: Remedy,
    /// The connection is of no use any more.
    pub broken: bool,
}

/// A row of the table: libvirt reuses its codes for many things, so the message decides first.
struct Row {
    /// `None`: any code.
    code: Option<Number>,
    /// Parts that the message must have, in lower case.
    says: &'static [&'static str],
    kind: SiteErrorKind,
    what: &'static str,
    hint: Option<&'static str>,
    then: Then,
}

#[derive(Clone, Copy)]
enum Then {
    GiveUp,
    /// The connection never stood: nothing was asked.
    NeverAsked,
    /// The connection broke in the middle.
    Broke,
    /// libvirt was busy and did nothing.
    Again,
}

pub(crate) fn verdict(said: &Said, op: Op) -> Verdict {
    judge(said.code(), said.domain(), said.message(), op)
}

fn judge(code: ErrorNumberEnum, domain: ErrorDomainEnum, message: &str, op: Op) -> Verdict {
    let message = message.to_lowercase();
    let row = ROWS.iter().find(|row| {
        row.code.is_none_or(|wanted| code.is(wanted))
            && row.says.iter().all(|part| message.contains(part))
    });
    let (kind, what, hint, then) = match row {
        Some(row) => (row.kind, row.what, row.hint, row.then),
        // Whatever the connection's own layer says: no answer came.
        None if domain.is(ErrorDomain::Rpc) => {
            (SiteErrorKind::Unreachable, "the connection broke", None, Then::Broke)
        }
        None => (SiteErrorKind::Platform, "libvirt refused", None, Then::GiveUp),
    };
    let remedy = match (then, op) {
        (Then::GiveUp, _) => Remedy::GiveUp,
        (Then::NeverAsked, _) => Remedy::RetryAfter(Duration::from_secs(2)),
        (Then::Broke, Op::Look) => Remedy::RetryAfter(Duration::from_secs(1)),
        (Then::Broke, Op::Change) => Remedy::Reconcile,
        (Then::Again, _) => Remedy::RetryAfter(Duration::from_secs(5)),
    };
    let broken = matches!(then, Then::NeverAsked | Then::Broke);
    Verdict { kind, what, hint, remedy, broken }
}

const fn row(
    code: Option<Number>,
    says: &'static [&'static str],
    kind: SiteErrorKind,
    what: &'static str,
    hint: Option<&'static str>,
    then: Then,
) -> Row {
    Row { code, says, kind, what, hint, then }
}

use SiteErrorKind as Kind;

/// The first row that fits is taken. Messages are those of libvirt 9.0.0.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Secrets, whose messages have much in common with others.
    row(None, &["virtsecretd-sock", "no such file"], Kind::Unsupported, "the host's libvirt keeps no secrets",
        Some("install virtsecretd there and start it"), Then::GiveUp),
    row(None, &["/libvirt/secrets/", "no space left on device"], Kind::Exhausted, "the host has no room for libvirt's secrets",
        Some("make room in /etc/libvirt there"), Then::GiveUp),

    // Who we are.
    row(None, &["host key verification failed"], Kind::Denied, "the host's SSH key is not known",
        Some("compare the host's key and add it to known_hosts"), Then::GiveUp),
    row(None, &["permission denied (publickey"], Kind::Denied, "SSH does not let us in",
        Some("check the user and the key that the URI names"), Then::GiveUp),
    row(Some(Number::SystemError), &["failed to connect socket", "permission denied"], Kind::Denied,
        "no access to libvirt's socket", Some("use a user in the group libvirt, or root"), Then::GiveUp),
    row(Some(Number::AuthFailed), &[], Kind::Denied, "libvirt does not accept the credentials",
        Some("check the user in the URI and the file auth.conf"), Then::GiveUp),
    row(Some(Number::AuthCancelled), &[], Kind::Denied, "libvirt asked for credentials that nobody gave",
        Some("put them into libvirt's file auth.conf"), Then::GiveUp),
    row(Some(Number::AuthUnavailable), &[], Kind::Denied, "no way to authenticate",
        Some("start polkit's agent, or use a user in the group libvirt"), Then::GiveUp),
    row(Some(Number::AccessDenied), &[], Kind::Denied, "the user may not do this", None, Then::GiveUp),
    row(Some(Number::OperationDenied), &[], Kind::Denied, "the connection is read-only",
        Some("use a URI without a read-only socket"), Then::GiveUp),
    row(Some(Number::GnutlsError), &[], Kind::Denied, "TLS failed",
        Some("check the certificates of both sides"), Then::GiveUp),

    // The connection.
    row(Some(Number::NoConnect), &[], Kind::Unreachable, "the URI leads nowhere",
        Some("check the URI with `virsh -c URI version`"), Then::NeverAsked),
    row(Some(Number::UnknownHost), &[], Kind::Unreachable, "the host is not known", None, Then::NeverAsked),
    row(None, &["unable to connect to server"], Kind::Unreachable, "libvirt does not answer there",
        Some("check that libvirtd runs and listens, and that nothing blocks the port"), Then::NeverAsked),
    row(None, &["failed to connect socket"], Kind::Unreachable, "libvirt's socket does not answer",
        Some("check that libvirtd runs"), Then::NeverAsked),
    row(None, &["unable to resolve address"], Kind::Unreachable, "the host's name does not resolve",
        None, Then::NeverAsked),
    row(None, &["could not resolve hostname"], Kind::Unreachable, "the host's name does not resolve",
        None, Then::NeverAsked),
    row(None, &["cannot recv data", "ssh:"], Kind::Unreachable, "SSH did not get through", None, Then::NeverAsked),
    row(None, &["end of file while reading data"], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(None, &["cannot recv data"], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(None, &["cannot write data"], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(None, &["client socket is closed"], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(None, &["connection reset by peer"], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(None, &["broken pipe"], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(Some(Number::Rpc), &[], Kind::Unreachable, "the connection broke", None, Then::Broke),
    row(Some(Number::InvalidConn), &[], Kind::Unreachable, "the connection broke", None, Then::Broke),

    // Room.
    row(None, &["no space left on device"], Kind::Exhausted, "the pool is full",
        Some("make room in the pool or choose another one"), Then::GiveUp),
    row(None, &["not enough free space"], Kind::Exhausted, "the pool is full",
        Some("make room in the pool or choose another one"), Then::GiveUp),
    row(None, &["insufficient free space"], Kind::Exhausted, "the volume group is full",
        Some("make room in the pool or choose another one"), Then::GiveUp),
    row(None, &["disk quota exceeded"], Kind::Exhausted, "the quota is used up", None, Then::GiveUp),
    row(None, &["cannot allocate memory"], Kind::Exhausted, "the host has too little memory",
        Some("stop another VM there, or give this one less"), Then::GiveUp),
    row(None, &["cannot set up guest memory"], Kind::Exhausted, "the host has too little memory",
        Some("stop another VM there, or give this one less"), Then::GiveUp),
    row(Some(Number::NoMemory), &[], Kind::Exhausted, "the host has too little memory", None, Then::GiveUp),

    // Not there.
    row(Some(Number::NoDomain), &[], Kind::NotFound, "there is no such VM", None, Then::GiveUp),
    row(Some(Number::NoStoragePool), &[], Kind::NotFound, "there is no such storage pool",
        Some("map the disk to a pool that `site check` lists"), Then::GiveUp),
    row(Some(Number::NoStorageVolume), &[], Kind::NotFound, "there is no such volume", None, Then::GiveUp),
    row(Some(Number::NoNetwork), &[], Kind::NotFound, "there is no such network",
        Some("map the card to a network that `site check` lists"), Then::GiveUp),
    row(Some(Number::NoSecret), &[], Kind::NotFound, "there is no such secret", None, Then::GiveUp),
    row(None, &["cannot find channel"], Kind::NotFound, "the VM has no such channel", None, Then::GiveUp),
    row(None, &["storage pool", "is not active"], Kind::WrongState, "the storage pool is not active",
        Some("start the pool"), Then::GiveUp),
    row(None, &["network", "is not active"], Kind::WrongState, "the network is not active",
        Some("start the network"), Then::GiveUp),
    row(None, &["cannot get interface mtu"], Kind::NotFound, "the bridge is not there",
        Some("map the card to a bridge or network that is there"), Then::GiveUp),

    // In the way.
    row(None, &["active channel stream exists"], Kind::Conflict, "the channel is in use",
        Some("another coordinator may be at work; only the holder of the state directory's lock takes over"), Then::GiveUp),
    row(Some(Number::DomExist), &[], Kind::Conflict, "a VM of that name or id exists",
        Some("rename or remove it"), Then::GiveUp),
    row(None, &["already exists with uuid"], Kind::Conflict, "a VM of that name exists",
        Some("rename or remove it"), Then::GiveUp),
    row(None, &["is already defined with uuid"], Kind::Conflict, "a VM of that id exists under another name",
        Some("rename or remove it"), Then::GiveUp),
    row(Some(Number::StorageVolExist), &[], Kind::Conflict, "a volume of that name exists",
        Some("remove it, or choose another pool"), Then::GiveUp),
    row(None, &["failed to get \"write\" lock"], Kind::Conflict, "another VM uses the disk",
        Some("stop that VM"), Then::GiveUp),
    row(None, &["failed to get shared \"write\" lock"], Kind::Conflict, "another VM uses the disk",
        Some("stop that VM"), Then::GiveUp),
    row(Some(Number::ResourceBusy), &[], Kind::Conflict, "it is in use", None, Then::GiveUp),

    // Not possible here.
    row(None, &["unable to find any firmware"], Kind::Unsupported, "the host has no such firmware",
        Some("install the host's UEFI firmware (Debian: ovmf)"), Then::GiveUp),
    row(None, &["does not support machine type"], Kind::Unsupported, "the host's QEMU lacks the machine type",
        Some("choose a machine type that `site check` lists"), Then::GiveUp),
    row(None, &["could not find capabilities for", "machine"], Kind::Unsupported, "the host's QEMU lacks the machine type",
        Some("choose a machine type that `site check` lists"), Then::GiveUp),
    row(Some(Number::CpuIncompatible), &[], Kind::Unsupported, "the host's processor lacks what the CPU model needs",
        Some("choose an older CPU model"), Then::GiveUp),
    row(None, &["cpu model"], Kind::Unsupported, "the host does not know the CPU model",
        Some("choose a CPU model that `site check` lists"), Then::GiveUp),
    row(None, &["cpu mode", "not supported by hypervisor"], Kind::Unsupported, "the host cannot give such a CPU",
        Some("choose another CPU model"), Then::GiveUp),
    row(None, &["o_direct"], Kind::Unsupported, "the pool's file system does not do direct I/O", None, Then::GiveUp),
    row(Some(Number::ConfigUnsupported), &[], Kind::Unsupported, "the host cannot run such a VM", None, Then::GiveUp),
    row(Some(Number::NoSupport), &["secret"], Kind::Unsupported, "this libvirt keeps no secrets",
        Some("install libvirt's secret driver there and start libvirtd again"), Then::GiveUp),
    row(Some(Number::NoSupport), &[], Kind::Unsupported, "this libvirt does not do that", None, Then::GiveUp),
    row(Some(Number::OperationUnsupported), &[], Kind::Unsupported, "this libvirt does not do that", None, Then::GiveUp),
    row(Some(Number::ArgumentUnsupported), &[], Kind::Unsupported, "this libvirt does not do that", None, Then::GiveUp),

    // Not now.
    row(None, &["has asynchronous jobs running"], Kind::WrongState, "the pool is busy", None, Then::Again),
    row(None, &["cannot acquire state change lock"], Kind::WrongState, "another job works on the VM", None, Then::Again),
    row(Some(Number::OperationTimeout), &[], Kind::Platform, "libvirt gave up waiting", None, Then::Again),
    row(None, &["cannot access storage file", "/fenced/"], Kind::WrongState, "the VM is fenced: it moved to another site",
        Some("`causeway status` says where it lives"), Then::GiveUp),
    row(None, &["image is not in qcow2 format"], Kind::WrongState, "a disk is fenced or damaged",
        Some("`causeway status` says where the VM lives"), Then::GiveUp),
    row(Some(Number::OperationInvalid), &[], Kind::WrongState, "the VM is not in the state for it", None, Then::GiveUp),

    // Our own.
    row(Some(Number::XmlError), &[], Kind::Internal, "libvirt does not understand our definition", None, Then::GiveUp),
    row(Some(Number::XmlDetail), &[], Kind::Internal, "libvirt does not understand our definition", None, Then::GiveUp),
    row(Some(Number::XmlInvalidSchema), &[], Kind::Internal, "libvirt does not understand our definition", None, Then::GiveUp),
    row(Some(Number::InvalidArg), &[], Kind::Internal, "libvirt does not understand the call", None, Then::GiveUp),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: Number, domain: ErrorDomain, message: &str, op: Op) -> Verdict {
        judge(code.into(), domain.into(), message, op)
    }

    #[test]
    fn no_row_is_hidden_behind_an_earlier_one() {
        for row in ROWS {
            let code = row.code.unwrap_or(Number::OperationFailed);
            let verdict = said(code, ErrorDomain::Qemu, &row.says.join(" x "), Op::Look);
            assert_eq!((verdict.kind, verdict.what), (row.kind, row.what), "{:?}", row.says);
        }
    }

    #[test]
    fn every_row_that_gives_up_on_the_operators_account_says_what_to_do() {
        use SiteErrorKind::{Conflict, Exhausted, Unsupported};
        for row in ROWS.iter().filter(|row| row.code.is_none() && matches!(row.then, Then::GiveUp))
        {
            let told = row.hint.is_some()
                || !matches!(row.kind, Conflict | Unsupported | Exhausted)
                || ["disk quota exceeded", "o_direct"].contains(&row.says[0]);
            assert!(told, "{:?}", row.says);
        }
    }

    /// Messages as libvirt 9.0.0 and QEMU 7.2 were seen to write them.
    #[test]
    fn what_libvirt_says_is_understood() {
        use SiteErrorKind as Kind;
        let seen = [
            (
                Number::SystemError,
                "unable to connect to server at '10.0.0.1:16509': Connection refused",
                Kind::Unreachable,
            ),
            (
                Number::SystemError,
                "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
                Kind::Unreachable,
            ),
            (
                Number::SystemError,
                "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied",
                Kind::Denied,
            ),
            (
                Number::SystemError,
                "Cannot recv data: Host key verification failed.: Connection reset by peer",
                Kind::Denied,
            ),
            (
                Number::SystemError,
                "Cannot recv data: ssh: connect to host east port 22: No route to host: Connection reset by peer",
                Kind::Unreachable,
            ),
            (
                Number::SystemError,
                "End of file while reading data: Input/output error",
                Kind::Unreachable,
            ),
            (Number::InternalError, "client socket is closed", Kind::Unreachable),
            (Number::AuthFailed, "authentication failed: authentication failed", Kind::Denied),
            (
                Number::NoDomain,
                "Domain not found: no domain with matching name 'web1'",
                Kind::NotFound,
            ),
            (
                Number::NoStoragePool,
                "Storage pool not found: no storage pool with matching name 'x'",
                Kind::NotFound,
            ),
            (
                Number::OperationFailed,
                "operation failed: domain 'web1' already exists with uuid 3b2f1c7e",
                Kind::Conflict,
            ),
            (
                Number::OperationFailed,
                "operation failed: Active channel stream exists for this domain",
                Kind::Conflict,
            ),
            (Number::StorageVolExist, "storage volume 'web1-vda' exists already", Kind::Conflict),
            (
                Number::NoSecret,
                "Secret not found: no secret with matching uuid '3b2f1c7e'",
                Kind::NotFound,
            ),
            (
                Number::NoSupport,
                "this function is not supported by the connection driver: virSecretLookupByUUID",
                Kind::Unsupported,
            ),
            (
                Number::SystemError,
                "Failed to connect socket to '/var/run/libvirt/virtsecretd-sock': No such file or directory",
                Kind::Unsupported,
            ),
            (
                Number::SystemError,
                "Failed to connect socket to '/var/run/libvirt/virtsecretd-sock': Permission denied",
                Kind::Denied,
            ),
            (
                Number::SystemError,
                "cannot write data to file '/etc/libvirt/secrets/3b2f.base64.new': No space left on device",
                Kind::Exhausted,
            ),
            (
                Number::InternalError,
                "cannot fill file '/srv/x': No space left on device",
                Kind::Exhausted,
            ),
            (
                Number::InternalError,
                "process exited while connecting to monitor: cannot set up guest memory 'pc.ram': Cannot allocate memory",
                Kind::Exhausted,
            ),
            (
                Number::CpuIncompatible,
                "the CPU is incompatible with host CPU: Host CPU does not provide required features: avx512f",
                Kind::Unsupported,
            ),
            (Number::InternalError, "Unknown CPU model Nonesuch", Kind::Unsupported),
            (
                Number::ConfigUnsupported,
                "unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' does not support machine type 'foo'",
                Kind::Unsupported,
            ),
            (
                Number::OperationFailed,
                "operation failed: Unable to find any firmware to satisfy 'efi'",
                Kind::Unsupported,
            ),
            (
                Number::SystemError,
                "Cannot access storage file '/FENCED/by-causeway/web1/moved-to-another-site/vda': No such file or directory",
                Kind::WrongState,
            ),
            (
                Number::InternalError,
                "qemu unexpectedly closed the monitor: Image is not in qcow2 format",
                Kind::WrongState,
            ),
            (
                Number::InternalError,
                "process exited while connecting to monitor: Failed to get \"write\" lock",
                Kind::Conflict,
            ),
            (
                Number::OperationInvalid,
                "Requested operation is not valid: domain is not running",
                Kind::WrongState,
            ),
            (Number::XmlError, "XML error: missing name", Kind::Internal),
            (Number::InternalError, "something new", Kind::Platform),
        ];
        for (code, message, kind) in seen {
            let verdict = said(code, ErrorDomain::Qemu, message, Op::Look);
            assert_eq!(verdict.kind, kind, "{message}");
        }
    }

    #[test]
    fn a_connection_that_breaks_leaves_a_change_open_and_a_look_not() {
        let broke = "End of file while reading data: Input/output error";
        let judged = |message, domain, op| said(Number::SystemError, domain, message, op).remedy;
        assert_eq!(judged(broke, ErrorDomain::Rpc, Op::Change), Remedy::Reconcile);
        assert!(matches!(judged(broke, ErrorDomain::Rpc, Op::Look), Remedy::RetryAfter(_)));
        let strange = "words of a later release";
        assert_eq!(judged(strange, ErrorDomain::Rpc, Op::Change), Remedy::Reconcile);
        // What never stood was never asked.
        let refused = "unable to connect to server at 'a:1': Connection refused";
        assert!(matches!(judged(refused, ErrorDomain::Rpc, Op::Change), Remedy::RetryAfter(_)));
    }
}
