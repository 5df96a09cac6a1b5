"""What the tests stand on: servers, a database and a virtual host each, the relay as a process."""
