// Package road goes the whole way from a till's spool to the tables of the fleet
// service: the real spool and link, a network that fails, and the real service in
// a process of its own, which is killed. It holds tests alone.
package road
