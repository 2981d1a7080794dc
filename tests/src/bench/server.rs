//! The server of a pod: one thread, as little work for each request as there can be.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use super::{
    message::{REQUEST, RESPONSE, UPLOAD},
    time,
};
use crate::topology::Machine;

/// Connections that may wait to be taken: more than there ever are.
const BACKLOG: i32 = 4096;
/// Bytes that are read at a time, if there are so many.
const ROOM: usize = 1 << 18;
/// Mark the events of the listener and of the socket for datagrams; connections have their index.
const LISTENER: u64 = u64::MAX;
const DATAGRAMS: u64 = u64::MAX - 1;

/// Starts a server on a CPU, for TCP and UDP; it listens when this returns, and ends with the process.
///
/// # Errors
///
/// If it cannot have its ports.
pub fn start(machine: &Machine, at: SocketAddr, cpu: usize) -> Result<()> {
    let (ready, listening) = mpsc::channel();
    let namespace = machine.namespace.clone();
    thread::spawn(move || {
        let started = namespace.enter().and_then(|()| {
            time::stay_on(cpu)?;
            Server::bind(at)
        });
        match started {
            Ok(mut server) => {
                drop(ready.send(Ok(())));
                // Clients see that nobody answers any more, and say so.
                drop(server.run());
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
    let started = listening.recv().context("the server's thread ended").and_then(|result| result);
    started.with_context(|| format!("start a server at {at} of {}", machine.name))
}

/// A connection, and what its client is at.
struct Connection {
    stream: TcpStream,
    talk: Talk,
}

/// What a client is at.
enum Talk {
    /// It asks, and so much of its next request is there.
    Asking(usize),
    /// It sends, and nobody looks at what.
    Sending,
}

struct Server {
    epoll: Epoll,
    listener: TcpListener,
    datagrams: UdpSocket,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

impl Server {
    fn bind(at: SocketAddr) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let datagrams = UdpSocket::bind(at)?;
        datagrams.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&datagrams, EpollEvent::new(EpollFlags::EPOLLIN, DATAGRAMS))?;
        let (connections, free) = (Vec::new(), Vec::new());
        Ok(Self { epoll, listener, datagrams, connections, free, buffer: vec![0; ROOM] })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE)?;
            for event in events.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept()?,
                    DATAGRAMS => self.answer_datagrams()?,
                    index => self.serve(usize::try_from(index)?),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // It went away again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            stream.set_nonblocking(true)?;
            let index = self.free.pop().unwrap_or(self.connections.len());
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?))?;
            let connection = Some(Connection { stream, talk: Talk::Asking(0) });
            match self.connections.get_mut(index) {
                Some(slot) => *slot = connection,
                None => self.connections.push(connection),
            }
        }
    }

    /// Answers the requests that are there, and nothing else.
    fn answer_datagrams(&mut self) -> Result<()> {
        loop {
            match self.datagrams.recv_from(&mut self.buffer) {
                Ok((count, from)) if self.buffer.get(..count) == Some(REQUEST) => {
                    match self.datagrams.send_to(RESPONSE, from) {
                        // The client has gone.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                        result => drop(result?),
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers what is there; a connection that is over, or says something else, is closed.
    fn serve(&mut self, index: usize) {
        let Some(slot) = self.connections.get_mut(index) else {
            return;
        };
        if let Some(connection) = slot
            && connection.answer(&mut self.buffer).is_err()
        {
            *slot = None;
            self.free.push(index);
        }
    }
}

impl Connection {
    fn answer(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let before = if let Talk::Asking(received) = self.talk { received } else { 0 };
        let count = match self.stream.read(&mut buffer[before..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            result => result?,
        };
        let said = &buffer[before..before + count];
        match self.talk {
            Talk::Sending => {}
            Talk::Asking(0) if said.starts_with(UPLOAD) => self.talk = Talk::Sending,
            Talk::Asking(_) if REQUEST.get(before..before + count) != Some(said) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Talk::Asking(_) if before + count == REQUEST.len() => {
                self.talk = Talk::Asking(0);
                self.stream.write_all(RESPONSE)?;
            }
            Talk::Asking(_) => self.talk = Talk::Asking(before + count),
        }
        Ok(())
    }
}
