package export_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unpacked is where `make` puts syslog-ng: Debian lets nobody install it beside
// rsyslog.
const unpacked = "../../../.cache/syslog-ng"

// syslogNG is Debian's syslog-ng, which asks for a client certificate of a.
func syslogNG(t *testing.T, a *authority) *daemon {
	t.Helper()
	root, err := filepath.Abs(unpacked)
	must(t, err)
	bin, dir, addr := program(t, filepath.Join(root, "usr/sbin/syslog-ng"), "syslog-ng", "/usr/sbin/syslog-ng"), t.TempDir(), freeAddr(t)
	cert, key := a.issue(t, "syslog-ng.test")
	host, port, err := net.SplitHostPort(addr)
	must(t, err)
	d := &daemon{name: "syslog-ng", addr: addr, raw: filepath.Join(dir, "raw"), log: filepath.Join(dir, "log")}
	conf := fmt.Sprintf(`@version: 3.38
options { keep-hostname(yes); log-msg-size(16384); stats-freq(0); };
source s { syslog(ip(%[1]q) port(%[2]s) transport("tls") max-connections(20) log-iw-size(10000)
  tls(key-file(%[3]q) cert-file(%[4]q) ca-file(%[5]q) peer-verify(required-trusted))); };
destination d { file(%[6]q template("$ISODATE $HOST $PROGRAM $MSGID ${SDATA} $MSG\n") log-fifo-size(200000)); };
log { source(s); destination(d); flags(flow-control); };
`, host, port, key, cert, a.ca(), d.raw)
	must(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600))
	d.start = func() *exec.Cmd {
		cmd := exec.Command(bin, "-F", "--no-caps", "-f", filepath.Join(dir, "conf"), "-R", filepath.Join(dir, "persist"), "-p", filepath.Join(dir, "pid"), "-c", filepath.Join(dir, "ctl"))
		if filepath.Dir(bin) == filepath.Join(root, "usr/sbin") {
			cmd.Args = append(cmd.Args, "--module-path", filepath.Join(root, "usr/lib/syslog-ng/3.38"))
			libs, err := filepath.Glob(filepath.Join(root, "*lib/*-linux-gnu"))
			must(t, err)
			more, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
			must(t, err)
			libs = append(append(libs, more...), filepath.Join(root, "usr/lib/syslog-ng"))
			cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
		}
		return cmd
	}
	t.Cleanup(func() { d.down(t) })
	return d
}
