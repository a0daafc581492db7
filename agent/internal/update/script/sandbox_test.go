package script_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tillward/tillward/agent/internal/update/script"
)

// attack stages a release whose script tries something, and exits with 0 if it
// could. The text it is refused with is returned.
func attack(t *testing.T, body string, change ...func(*script.Options)) string {
	t.Helper()
	dir := t.TempDir()
	l := start(t, dir, nil, change...)
	j := job(t, "1.0.0", "#!/bin/bash\n"+body+"\nexit 1\n")
	err := l.Stage(t.Context(), j)
	if err == nil {
		t.Errorf("the script could do it")
		return ""
	}
	return err.Error()
}

// TestAttacks: what a script must not do it cannot.
func TestAttacks(t *testing.T) {
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "tillward-secret"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	victim := exec.Command("sleep", "600")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = victim.Process.Kill(), victim.Wait() })
	var called atomic.Int32
	var ears []net.Listener
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", fmt.Sprintf("@tillward-%d", os.Getpid())}} {
		ear, err := net.Listen(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		ears = append(ears, ear)
		t.Cleanup(func() { _ = ear.Close() })
		go func() {
			for {
				c, err := ear.Accept()
				if err != nil {
					return
				}
				called.Add(1)
				_ = c.Close()
			}
		}()
	}
	port := ears[0].Addr().(*net.TCPAddr).Port
	perl := func(code string) string { return "perl -e '" + code + "'; [ $? = 1 ] || exit 0" } // 1 is that it could not
	for name, body := range map[string]string{
		"write outside its folder":               `for d in / /usr /usr/bin /bin /lib /etc /dev /proc /release /work/.. ; do echo > $d/evil && exit 0; done; echo > /release/run && exit 0`,
		"change the mode of what it may look at": `chmod 777 /release/run && exit 0; chmod 777 /usr && exit 0; ln -f /usr/bin/env /work/env && exit 0`,
		"run what it wrote":                      `cp /bin/true /work/x; cp /bin/true /tmp/x; chmod 755 /work/x /tmp/x; /work/x && exit 0; /tmp/x && exit 0`,
		"see the state folder":                   fmt.Sprintf(`ls %s && exit 0; cat %[1]s/tillward-secret && exit 0; find / -name tillward-secret 2>/dev/null | grep . && exit 0`, secret),
		"see the box":                            `for d in /home /root /var /etc/shadow /etc/passwd /sys /boot /run /mnt /proc/meminfo /proc/sys/kernel /dev/mem /dev/kmsg /dev/sda /dev/vda /dev/tpm0 /dev/tty; do [ -e $d ] && exit 0; done`,
		"see other processes":                    fmt.Sprintf(`[ "$(ls /proc | grep -c '^[0-9]')" -gt 5 ] && exit 0; grep -az sleep /proc/[0-9]*/cmdline && exit 0; kill -0 %d && exit 0`, victim.Process.Pid),
		"reach the network":                      fmt.Sprintf(`(exec 3<>/dev/tcp/127.0.0.1/%d) && exit 0`, port) + "; " + perl(`socket(my $s, 2, 1, 0) or exit 1`) + "; " + perl(`socket(my $s, 16, 3, 0) or exit 1`) + "; " + perl(`socket(my $s, 40, 1, 0) or exit 1`) + `; ls /sys/class/net && exit 0`,
		"reach an abstract socket":               perl(fmt.Sprintf(`socket(my $s, 1, 1, 0) or exit 1; connect($s, pack("S a*", 1, "\0%s")) or exit 1`, strings.TrimPrefix(ears[1].Addr().String(), "@"))),
		"be root":                                `[ "$(grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | grep -vc 0000000000000000)" != 0 ] && exit 0; grep -q '^NoNewPrivs:.1' /proc/self/status || exit 0; grep -q '^Seccomp:.2' /proc/self/status || exit 0; ` + perl(`$< = $> = 2; exit($> != 2)`) + `; chown 2 /work && exit 0; mknod /work/null c 1 3 && exit 0`,
		"make namespaces":                        `unshare -U true && exit 0; unshare -Ur true && exit 0; unshare -n true && exit 0; nsenter -t 1 -m true && exit 0; ` + perl(`$r = syscall(272, 0x10000000); exit($r < 0)`),
		"mount":                                  `mount -t tmpfs none /work && exit 0; mount -o remount,rw / && exit 0; umount /usr && exit 0; mount -o remount,rw,bind /release && exit 0`,
		"call the kernel's edges":                `[ "$(uname -m)" = x86_64 ] || exit 1; for n in 101 250 248 298 321 323 425 246 169 ; do perl -e 'syscall($ARGV[0], 0, 0, 0, 0, 0); exit($!{EPERM} ? 1 : 0)' $n; [ $? = 1 ] || exit 0; done`,
		"take memory":                            "perl -e '$x = qq(x) x $ARGV[0]' 1000000 || exit 0; perl -e '$x = qq(x) x $ARGV[0]' 1000000000 && exit 0",
		"read the environment":                   `[ "$(env | grep -vcE '^(PATH|HOME|LANG|PWD|SHLVL|_|TILLWARD_(COMPONENT|VERSION|EXECUTION))=')" != 0 ] && exit 0; [ -e /proc/self/fd/3 ] && exit 0; [ -e /proc/self/fd/4 ] && exit 0`,
		"write one large file":                   `(dd if=/dev/zero of=/work/x bs=64k count=64) && exit 0`,
	} {
		t.Run(name, func(t *testing.T) {
			said := attack(t, body)
			if !strings.Contains(said, "script firmware: stage:") {
				t.Errorf("it did not run: %s", said)
			}
		})
	}
	if n := called.Load(); n > 0 {
		t.Errorf("%d calls from the sandbox came through", n)
	}
	if victim.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("the other process is gone")
	}
}

// The twins: what a script may do it can.
func TestAllowed(t *testing.T) {
	l := start(t, t.TempDir(), nil, func(o *script.Options) { o.Scripts[0].Devices = []string{"/dev/tty", "/dev/not-there"} })
	l.stage(job(t, "1.0.0", `#!/bin/bash
set -e
echo kept > /work/file
echo scratch > /tmp/file
cat /release/version /usr/bin/env > /dev/null
[ -c /dev/tty ] && [ -c /dev/null ]
[ "$(cat <(echo pipe))" = pipe ] || [ ! -e /dev/fd ]
[ "$(pwd)" = /work ]
head -c 10 /dev/urandom > /dev/null
sleep 0 & wait
[ "$$" = 1 ]
`))
	if b, err := os.ReadFile(l.file("work", "file")); err != nil || string(b) != "kept\n" {
		t.Errorf("work folder: %q, %v", b, err)
	}
	fi, err := os.Stat(l.file("work", "file"))
	if err != nil {
		t.Fatal(err)
	}
	if uid, want := fi.Sys().(*syscall.Stat_t).Uid, map[bool]int{true: 65533, false: os.Getuid()}[os.Getuid() == 0]; int(uid) != want {
		t.Errorf("scripts are user %d, want %d", uid, want)
	}
}

// alive counts the processes with the mark in their arguments.
func alive(mark string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	n := 0
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), mark) {
			n++
		}
	}
	return n
}

// mark is an argument of sleep that no other test has.
func mark(t *testing.T, n int) string {
	t.Helper()
	return fmt.Sprintf("86%d.%d", n, os.Getpid())
}

func short(o *script.Options) { o.Scripts[0].Time = time.Second }

// What takes too long is ended with everything it started.
func TestTime(t *testing.T) {
	m := mark(t, 1)
	for name, body := range map[string]string{
		"waits":      "sleep " + m,
		"background": "(setsid sleep " + m + " &) ; sleep " + m,
		"stubborn":   "trap '' TERM INT HUP; while :; do sleep " + m + "; done",
		"busy":       "while :; do :; done",
		"fork bomb":  "b() { sleep " + m + " & b | b & b; }; b 2>/dev/null",
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			if said := attack(t, body, short); !strings.Contains(said, "not done within 1s") && !strings.Contains(said, "exit code") {
				t.Errorf("got %s", said)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			if n := alive(m); n != 0 {
				t.Errorf("%d processes are left", n)
			}
		})
	}
	l := start(t, t.TempDir(), nil)
	l.stage(job(t, "1.0.0", "#!/bin/sh\nsetsid sleep "+m+" &\nexit 0\n"))
	if n := alive(m); n != 0 {
		t.Errorf("%d processes are left of a script that is done", n)
	}
}

// There are only so many processes.
func TestForks(t *testing.T) {
	said := attack(t, `perl -e 'for (1..500) { my $p = fork; last unless defined $p; if (!$p) { sleep 60; exit } $n++ } print STDERR "forks=$n\n"; exit($n < 100)' && exit 0`)
	if !strings.Contains(said, "forks=") || strings.Contains(said, "forks=500") {
		t.Errorf("got %s", said)
	}
}

// What fills the disk is ended, and does not stop the next call.
func TestFills(t *testing.T) {
	for name, body := range map[string]string{
		"with files":         `for i in $(seq 10000); do head -c 500000 /dev/zero > /work/$i || exit 1; done; exit 0`,
		"with names":         `cd /work; for i in $(seq 100); do perl -e 'for (1..1000) { open(my $f, ">", "$ARGV[0]-$_") or exit 1 }' $i || exit 1; done; exit 0`,
		"with hidden files":  `mkdir /work/d; for i in $(seq 1000); do head -c 500000 /dev/zero > /work/d/$i || exit 1; chmod 0 /work/d; chmod 700 /work/d; done; exit 0`,
		"in its last moment": `head -c 900000 /dev/zero > /work/a; head -c 900000 /dev/zero > /work/b; exit 0`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := start(t, dir, nil)
			err := l.Stage(t.Context(), job(t, "1.0.0", "#!/bin/bash\n"+body+"\n"))
			if err == nil || !strings.Contains(err.Error(), "more than") && !strings.Contains(err.Error(), "look at") {
				t.Errorf("got %v", err)
			}
			if left, _ := os.ReadDir(l.file("work")); len(left) > 0 {
				t.Errorf("%d files are left", len(left))
			}
			l.stage(job(t, "1.1.0", firmware))
		})
	}
}

// A script ends with the call that was given up.
func TestCanceled(t *testing.T) {
	m := mark(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	l := start(t, t.TempDir(), nil)
	go func() {
		for alive(m) == 0 && t.Context().Err() == nil {
		}
		cancel()
	}()
	if err := l.Stage(ctx, job(t, "1.0.0", "#!/bin/sh\nsleep "+m+"\n")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := alive(m); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

const roleEnv = "TILLWARD_TEST_ROLE"

// TestRole is not a test: it is what other tests start as another process.
func TestRole(t *testing.T) {
	switch os.Getenv(roleEnv) {
	case "agent": // runs a script until it is killed
		l := start(t, t.TempDir(), nil)
		t.Errorf("the script ended: %v", l.Stage(t.Context(), job(t, "1.0.0", "#!/bin/sh\nsleep "+os.Getenv("MARK")+"\n")))
	case "confined": // in a kernel that allows no namespaces
		l := start(t, t.TempDir(), nil)
		if err := l.Supported(t.Context()); err == nil || !strings.Contains(err.Error(), "no sandbox for scripts") {
			t.Errorf("supported: %v", err)
		}
		j := job(t, "1.0.0", "#!/bin/sh\necho > /work/ran\n")
		err := l.Stage(t.Context(), j)
		if err == nil || !strings.Contains(err.Error(), "no sandbox for scripts") {
			t.Errorf("staged: %v", err)
		}
		if _, err := os.Stat(l.file("work", "ran")); err == nil {
			t.Error("it ran unprotected")
		}
	}
}

// self starts this test binary again.
func self(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"-test.v"}, args...)...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return cmd
}

// When the agent is killed the script does not run on.
func TestEndsWithAgent(t *testing.T) {
	m := mark(t, 3)
	agent := self(t, "agent", "-test.run=^TestRole$")
	agent.Env = append(agent.Env, "MARK="+m)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ends := make(chan struct{})
	go func() { _ = agent.Wait(); close(ends) }()
	for alive(m) < 1 {
		select {
		case <-ends:
			t.Fatal("it ended by itself")
		default:
		}
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ends
	for until := time.Now().Add(10 * time.Second); alive(m) > 0; {
		if time.Now().After(until) {
			t.Fatal("the script runs on")
		}
	}
}

// Where the kernel gives no namespaces nothing runs.
func TestConfined(t *testing.T) {
	cmd := self(t, "confined", "-test.run=^TestRole$")
	exe, err := os.Open("/proc/self/exe") // its path may be hidden from an ordinary user
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	cmd.Path, cmd.ExtraFiles = "/bin/sh", []*os.File{exe}
	cmd.Args = append([]string{"sh", "-c", `echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"`, "/proc/self/fd/3"}, cmd.Args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestRole") {
		t.Errorf("%v: %s", err, out)
	}
}

// All of this holds for an agent without rights, too.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv(roleEnv) != "" {
		return // it is what runs
	}
	const uid = 64321
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, uid, uid), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := self(t, "ordinary", "-test.run=^Test(Script|Allowed|Attacks|Forks|EndsWithAgent|Confined)$")
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAttacks") || strings.Contains(string(out), "SKIP") {
		t.Errorf("%v: %s", err, out)
	}
}
