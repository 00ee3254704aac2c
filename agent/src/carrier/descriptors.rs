//! Hands open sockets from one process to another.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use wire::data::STREAMS_MAX;

const SPACE: usize = rustix::cmsg_space!(ScmRights(STREAMS_MAX as usize));

/// Both ends of a channel that keeps messages apart.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// All sockets of one generation, as one message.
pub fn send(channel: &impl AsFd, generation: u64, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let content = generation.to_le_bytes();
    sendmsg(channel, &[IoSlice::new(&content)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message, which was sent before: nothing is waited for.
pub fn receive(channel: &impl AsFd) -> io::Result<(u64, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut content = [0; 8];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut content)], &mut ancillary, flags)?;
    if received.bytes != content.len() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            sockets.extend(given);
        }
    }
    Ok((u64::from_le_bytes(content), sockets))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_arrive_in_order_and_with_their_generation() {
        let (here, there) = channel().unwrap();
        let (mut first, ours) = UnixStream::pair().unwrap();
        let (mut second, also_ours) = UnixStream::pair().unwrap();
        send(&here, 7, &[ours.as_fd(), also_ours.as_fd()]).unwrap();
        drop((ours, also_ours));
        first.write_all(b"1").unwrap();
        second.write_all(b"2").unwrap();
        let (generation, sockets) = receive(&there).unwrap();
        let read = sockets.into_iter().map(|socket| {
            let mut byte = [0];
            UnixStream::from(socket).read_exact(&mut byte).unwrap();
            byte[0]
        });
        assert_eq!((generation, read.collect::<Vec<u8>>()), (7, b"12".to_vec()));
        assert!(receive(&there).is_err(), "it waited");
    }

    #[test]
    fn as_many_as_a_connection_may_have_fit() {
        let (here, there) = channel().unwrap();
        let one = UnixStream::pair().unwrap().0;
        send(&here, 1, &vec![one.as_fd(); STREAMS_MAX.into()]).unwrap();
        assert_eq!(receive(&there).unwrap().1.len(), usize::from(STREAMS_MAX));
    }
}
