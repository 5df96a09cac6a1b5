"""Private servers and the whole stack, for `relay demo` and the tests. It never touches a server that already runs."""
