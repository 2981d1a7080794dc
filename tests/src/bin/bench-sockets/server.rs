//! The server of a pod: one thread, as little work for each request as there can be.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use sluice_tests::topology::Machine;
use socket2::{Domain, Socket, Type};

use crate::{
    message::{REQUEST, RESPONSE, ROOM},
    time,
};

/// Connections that may wait to be taken: more than there ever are.
const BACKLOG: i32 = 4096;
/// Marks the events of the listener; connections have their index.
const LISTENER: u64 = u64::MAX;

/// Starts a server on a CPU; it listens when this returns, and ends with the process.
pub(crate) fn start(machine: &Machine, at: SocketAddr, cpu: usize) -> Result<()> {
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

/// A connection, and how much of its next request is there.
struct Connection {
    stream: TcpStream,
    received: usize,
}

struct Server {
    epoll: Epoll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: [u8; ROOM],
}

impl Server {
    fn bind(at: SocketAddr) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self { epoll, listener, connections: Vec::new(), free: Vec::new(), buffer: [0; ROOM] })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE)?;
            for event in events.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept()?,
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
            let connection = Some(Connection { stream, received: 0 });
            match self.connections.get_mut(index) {
                Some(slot) => *slot = connection,
                None => self.connections.push(connection),
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
    fn answer(&mut self, buffer: &mut [u8; ROOM]) -> io::Result<()> {
        let count = match self.stream.read(&mut buffer[self.received..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            result => result?,
        };
        let expected = REQUEST.get(self.received..self.received + count);
        if expected != buffer.get(self.received..self.received + count) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.received += count;
        if self.received == REQUEST.len() {
            self.received = 0;
            self.stream.write_all(RESPONSE)?;
        }
        Ok(())
    }
}
