//! A guest's TPM, spoken to without any program in the guest that knows TPMs.

use lab::guest::Ssh;

/// `TPM_RH_OWNER`; nobody owns a new one, so its password is empty.
const OWNER: u32 = 0x4000_0001;
/// How long it is, and `TPM_RS_PW` as the only session, with an empty password.
const BY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
/// Of a place in its memory; in the range that owners may use.
const INDEX: u32 = 0x0150_0016;
/// That its owner may read and write it.
const ATTRIBUTES: u32 = 0x0202_0002;
const SHA256: u16 = 0x000B;
/// Of commands with a session.
const WITH_SESSION: u16 = 0x8002;
/// The register for tests: it is zero when the TPM is started.
const REGISTER: u32 = 16;

/// A register that forgets when the TPM is started anew.
pub fn extend(ssh: &Ssh<'_>) -> String {
    let digest = [0xCA; 32];
    ask(ssh, 0x182, &[REGISTER], &[&1_u32.to_be_bytes()[..], &SHA256.to_be_bytes(), &digest]);
    register(ssh)
}

pub fn register(ssh: &Ssh<'_>) -> String {
    let read = ssh.run(&format!("cat /sys/class/tpm/tpm0/pcr-sha256/{REGISTER}")).unwrap();
    read.trim().to_owned()
}

/// A place that keeps `secret` for ever.
pub fn keep(ssh: &Ssh<'_>, secret: &str) {
    let size = u16::try_from(secret.len()).unwrap().to_be_bytes();
    let public = [
        &INDEX.to_be_bytes()[..],
        &SHA256.to_be_bytes(),
        &ATTRIBUTES.to_be_bytes(),
        &[0, 0],
        &size,
    ];
    // An empty password of its own, and how long what follows is.
    ask(ssh, 0x12A, &[OWNER], &[&[&[0, 0, 0, 14][..]], &public[..]].concat());
    ask(ssh, 0x137, &[OWNER, INDEX], &[&size, secret.as_bytes(), &[0, 0]]);
}

pub fn kept(ssh: &Ssh<'_>, len: u16) -> String {
    let answer = ask(ssh, 0x14E, &[OWNER, INDEX], &[&len.to_be_bytes()[..], &[0, 0]]);
    // How long the parameters are, and how long the secret is.
    String::from_utf8(answer[6..][..usize::from(len)].to_vec()).unwrap()
}

/// The answer behind its header.
fn ask(ssh: &Ssh<'_>, code: u32, handles: &[u32], parameters: &[&[u8]]) -> Vec<u8> {
    let handles: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    let rest = [&handles, &BY_PASSWORD[..], &parameters.concat()].concat();
    let size = u32::try_from(10 + rest.len()).unwrap().to_be_bytes();
    let command = [&WITH_SESSION.to_be_bytes()[..], &size, &code.to_be_bytes(), &rest].concat();
    let octal: String = command.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let hex = ssh
        .run(&format!(
            "exec 3<>/dev/tpm0; printf '{octal}' >&3; dd bs=4096 count=1 <&3 2>/dev/null | \
             hexdump -v -e '/1 \"%02x\"'"
        ))
        .unwrap();
    let answer: Vec<u8> =
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..][..2], 16).unwrap()).collect();
    assert!(answer[6..10] == [0; 4], "command {code:#x}: {hex}");
    answer[10..].to_vec()
}
