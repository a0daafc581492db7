//go:build firmware

// The tests of this file boot whole machines and take minutes: make
// test-firmware runs them, go test ./... does not.
package firmware_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
	"github.com/tillward/tillward/simulator/firmware"
	"github.com/tillward/tillward/simulator/guest"
)

var (
	binFlag    = flag.String("bin", "../../bin", "folder with tillward-agent, tillward and tillward-provision")
	cacheFlag  = flag.String("cache", "../../.cache/firmware", "folder for what is downloaded")
	reportTo   = flag.String("report", "", "file for the figures, a line of JSON for each stage")
	imageFlag  = flag.String("image", "", "folder of an image of Buildroot's, to boot in place of Debian's kernel and programs")
	debianFlag = flag.String("debian", "", "name of the Debian `release` that the tills are of, if not trixie")
	keepFlag   = flag.String("keep", "", "folder to work in, which is left as it is")
	seedFlag   = flag.Uint64("seed", 1, "where the power is cut")
	slowFlag   = flag.Int("slow", 1, "how many times longer all may take, on a machine that has other work")
	cutsFlag   = flag.Int("cuts", 10, "how often the power is cut during an installation")
)

// TestFirmware flashes three tills and lets them live: what is shown on the one
// needs nothing of the others, so that they run at once (with -parallel 3). Each
// stage brings about what it needs, so that -run picks any.
func TestFirmware(t *testing.T) {
	needsQEMU(t)
	l := open(t)
	t.Cleanup(func() { t.Log("\n" + l.report.table()) })
	if l.kit.Given != nil {
		t.Run("given", l.given)
	}
	if !t.Run("images", l.reproducible) {
		return
	}
	t.Run("tills", func(t *testing.T) {
		for name, lane := range map[string]struct {
			flash  string
			stages []stage
		}{"till-1": {first, lifeOfOne}, "till-2": {talking, lifeOfTwo}, "till-3": {first, lifeOfThree}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b, err := l.box(t.Context(), name, lane.flash)
				if err != nil {
					t.Fatal(err)
				}
				b.each(t, lane.stages)
			})
		}
	})
}

// open prepares the bench: what Debian has, the service, the vendor's keys, and
// the boot that others are computed from.
func open(t *testing.T) *lab {
	t.Helper()
	ctx := t.Context()
	dir := *keepFlag
	if dir == "" {
		dir = t.TempDir()
	}
	var err error
	l := &lab{t: t, images: map[string]firmware.Image{}, released: map[string]bool{}, report: &report{json: os.Stdout}}
	if *reportTo != "" {
		f, err := os.Create(*reportTo)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		l.report.json = f
	}
	var paths [3]string
	for i, p := range []string{dir, *binFlag, *cacheFlag} {
		if paths[i], err = filepath.Abs(p); err != nil {
			t.Fatal(err)
		}
	}
	l.dir = paths[0]
	err = l.report.task("kit", func(note func(string, any)) error {
		source, err := filepath.Abs("../..")
		if err == nil {
			l.kit, err = firmware.Open(ctx, firmware.Options{Source: source, Bin: paths[1], Cache: paths[2], Image: *imageFlag, Debian: *debianFlag, Say: os.Stderr})
		}
		if err == nil && l.kit.Given == nil {
			note("Linux", l.kit.ABI)
			note("RAUC", l.kit.Versions["rauc"])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	clock, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = clock.Close() })
	go serveTime(clock, &l.asked)
	l.clock = clock.LocalAddr().String()
	err = l.report.task("service", func(func(string, any)) (err error) {
		l.fleet, err = openFleet(ctx, l.dir, paths[1])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.fleet.Close)
	if err := l.report.task("base log", func(note func(string, any)) error { return l.observe(ctx, paths[2], note) }); err != nil {
		t.Fatal(err)
	}
	return l
}

// observe brings the boot that others are worked out from: watched once for each
// kit and QEMU, since neither image nor till changes it.
func (l *lab) observe(ctx context.Context, cache string, note func(string, any)) error {
	version, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return err
	}
	kit, err := json.Marshal(l.kit)
	if err != nil {
		return err
	}
	base := filepath.Join(cache, fmt.Sprintf("base-%.12x", sha256.Sum256(append(kit, version...))))
	if _, err := os.Stat(base); err != nil {
		made, err := os.MkdirTemp(cache, "observing-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(made)
		seen, err := l.kit.Observe(ctx, filepath.Join(made, "machine"), firmware.MachineOptions{})
		if err != nil {
			return err
		}
		err = errors.Join(os.WriteFile(filepath.Join(made, "base.log"), seen.Log, 0o644), os.Rename(seen.UKI, filepath.Join(made, "base.efi")), os.RemoveAll(filepath.Join(made, "machine")))
		if err != nil {
			return err
		}
		if err := os.Rename(made, base); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else {
		note("from", "cache")
	}
	l.baseLog, l.baseUKI = filepath.Join(base, "base.log"), filepath.Join(base, "base.efi")
	return nil
}

const mib = 1 << 20

// reproducible builds the first release twice.
func (l *lab) reproducible(t *testing.T) {
	var one, two firmware.Image
	build := func(name, dir string, into *firmware.Image) {
		err := l.report.task(name, func(note func(string, any)) (err error) {
			if dir == "" {
				*into, err = l.image(t.Context(), first)
			} else {
				*into, err = l.build(t.Context(), first, dir)
			}
			if err != nil {
				return err
			}
			fi, err := os.Stat(into.RootFS)
			if err != nil {
				return err
			}
			note("root MiB", fmt.Sprintf("%.1f", float64(fi.Size())/mib))
			if fi.Size() > 64*mib {
				return fmt.Errorf("the root file system has %d bytes, more than 64 MiB", fi.Size())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	build("image "+first, "", &one)
	build("image "+first+" again", filepath.Join(l.dir, "image", "again"), &two)
	for what, files := range map[string][2]string{
		"UKI": {one.UKI, two.UKI}, "root": {one.RootFS, two.RootFS},
	} {
		a, b, err := sums(files)
		if err != nil || a != b {
			t.Errorf("%s of the same sources: sha256 %s and %s, %v", what, a, b, err)
		}
	}
	a, b, err := valuesOf([2]string{one.Reference, two.Reference})
	if err != nil || a != b {
		t.Errorf("reference values of the same sources differ: %v\n%s\n%s", err, a, b)
	}
	if a, b, err := sums([2]string{one.UKI, one.UKI}); err != nil || a != b || len(a) != 64 {
		t.Errorf("sums: %q, %q, %v", a, b, err)
	}
}

// lifeOfOne is what happens to a till as vendors flash it: no console.
var lifeOfOne = []stage{
	{name: "first-boot", limit: 6 * time.Minute, do: firstBoot},
	{name: "closed", needs: []string{"first-boot"}, limit: 2 * time.Minute, do: closed},
	{name: "counter", needs: []string{"closed"}, limit: 3 * time.Minute, do: counter},
	{name: "agent", needs: []string{"first-boot"}, limit: 4 * time.Minute, do: agentUpdate},
	{name: "update", needs: []string{"first-boot"}, limit: 8 * time.Minute, do: update},
	{name: "panic", needs: []string{"update"}, limit: 8 * time.Minute, do: func(ctx context.Context, b *till, note func(string, any)) error {
		return failing(ctx, b, note, panics, 7*time.Minute)
	}},
	{name: "hang", needs: []string{"update"}, limit: 8 * time.Minute, do: func(ctx context.Context, b *till, note func(string, any)) error {
		return failing(ctx, b, note, hangs, 7*time.Minute)
	}},
	{name: "never-connects", needs: []string{"update"}, limit: 10 * time.Minute, do: func(ctx context.Context, b *till, note func(string, any)) error {
		return failing(ctx, b, note, mute, 9*time.Minute)
	}},
}

// lifeOfTwo is what happens to a till whose words can be read.
var lifeOfTwo = []stage{
	{name: "first-boot", limit: 6 * time.Minute, do: firstBoot},
	{name: "stolen-disk", needs: []string{"first-boot"}, limit: 4 * time.Minute, do: stolen},
	{name: "initrd-changed", needs: []string{"first-boot"}, limit: 6 * time.Minute, do: tampered},
	{name: "stick", needs: []string{"first-boot"}, limit: 4 * time.Minute, do: stick},
	{name: "factory-reset", needs: []string{"first-boot"}, limit: 6 * time.Minute, do: factoryReset},
	{name: "reset-button", needs: []string{"first-boot"}, limit: 6 * time.Minute, do: resetButton},
}

// lifeOfThree is that of a till in a shop with bad wiring.
var lifeOfThree = []stage{
	{name: "first-boot", limit: 6 * time.Minute, do: firstBoot},
	{name: "power-cuts", needs: []string{"first-boot"}, limit: 25 * time.Minute, do: powerCuts},
	{name: "root-flipped", needs: []string{"power-cuts"}, limit: 6 * time.Minute, do: flipped},
}

// firstBoot switches a new till on: it enrols by its TPM, proves how it booted,
// and tells what it measures.
func firstBoot(ctx context.Context, b *till, note func(string, any)) error {
	if err := b.power(); err != nil {
		return err
	}
	began := b.machine.CPU()
	want := system + "/" + b.flash
	d, err := b.on(ctx, "is attested", 5*time.Minute, func(d device) bool { return d.Trust == "attested" })
	if err != nil {
		return err
	}
	note("attested CPU s", seconds(b.machine.CPU()-began))
	if d.BootRelease != want || d.Tier != "C" || len(d.Findings) != 0 {
		return fmt.Errorf("boots %q as tier %s with %+v, want %s, C and no finding", d.BootRelease, d.Tier, d.Findings, want)
	}
	if _, err := b.on(ctx, "has stored a sample", 2*time.Minute, func(d device) bool { return d.Samples > 0 }); err != nil {
		return err
	}
	note("first sample CPU s", seconds(b.machine.CPU()-began))
	if b.flash == talking {
		if b.asked.Load() == 0 {
			return errors.New("its clock began in 2001, and it never asked what time it is")
		}
		note("clock", "2001, then by NTP")
	}
	return b.untilRuns(ctx, note, b.flash)
}

// untilRuns waits until the till says that it runs a release.
func (b *till) untilRuns(ctx context.Context, note func(string, any), want string) error {
	var version, slot string
	err := b.fleet.Until(ctx, b.name+" says that it runs "+want, func(ctx context.Context) (_ bool, err error) {
		version, slot, err = b.runs(ctx)
		return version == want, err
	})
	note("slot", slot)
	if err != nil {
		return fmt.Errorf("%w; it runs %q in slot %q", err, version, slot)
	}
	return nil
}

// counter lets things happen at the counter.
func counter(ctx context.Context, b *till, _ func(string, any)) error {
	shows := func(id, category string, sensors ...string) func(device) bool {
		return func(d device) bool {
			for _, p := range d.Peripherals {
				if p.ID != id || p.Category != category {
					continue
				}
				p.Sensors["power"] = p.Power
				return !slices.ContainsFunc(sensors, func(s string) bool {
					k, v, _ := strings.Cut(s, "=")
					return fmt.Sprint(p.Sensors[k]) != v
				})
			}
			return false
		}
	}
	p, card := b.counter.Printer, b.counter.Reader.Card
	for _, s := range []struct {
		what string
		do   func()
		ok   func(device) bool
	}{
		{"has its printer", func() {}, shows("receipt", "POSPrinter", "power=PS_ONLINE", "CoverOpen=No", "RecEmpty=No")},
		{"has its reader", func() {}, shows("reader", "SmartCardRW", "power=PS_ONLINE", "SCPresentSensor=No")},
		{"sees the cover open", func() { p.Set(emulator.CoverOpen, true) }, shows("receipt", "POSPrinter", "CoverOpen=Yes")},
		{"sees the cover closed", func() { p.Set(emulator.CoverOpen, false) }, shows("receipt", "POSPrinter", "CoverOpen=No")},
		{"sees a card", card.Insert, shows("reader", "SmartCardRW", "SCPresentSensor=Yes")},
		{"sees it gone", card.Remove, shows("reader", "SmartCardRW", "power=PS_ONLINE", "SCPresentSensor=No")},
	} {
		s.do()
		if _, err := b.on(ctx, s.what, 90*time.Second, s.ok); err != nil {
			return err
		}
	}
	if len(card.Commands()) == 0 {
		return errors.New("the card was never asked anything")
	}
	if _, err := b.fleet.command(ctx, b.id, "print-test", time.Minute, map[string]string{"peripheral": "receipt"}); err != nil {
		return err
	}
	if len(p.Jobs()) == 0 {
		return errors.New("the printer has printed nothing")
	}
	return b.fleet.Until(ctx, "measurements of both are stored", func(ctx context.Context) (bool, error) {
		lines, err := b.fleet.series(ctx, b.id, "receipt", "ReceiptLineFeedCount")
		if err != nil {
			return false, err
		}
		cards, err := b.fleet.series(ctx, b.id, "reader", "M_CardInsertedCount")
		return lines > 0 && cards > 0, err
	})
}

// head is how a diagnosis begins: the whole lists each event of the boot.
func head(said string) string { return said[:min(len(said), 1000)] }

var (
	kernelSays = regexp.MustCompile(`(?m)^\[ *\d+\.\d+\]|login:|Linux version|tillward`)
	listens    = regexp.MustCompile(`(?m)^listening:?\s+(.*)$`)
)

// closed looks for ways in: a port that listens, a console, a disk that can be
// read.
func closed(ctx context.Context, b *till, note func(string, any)) error {
	var said string
	err := b.fleet.Until(ctx, "the books are locked, as the agent starts once more for", func(ctx context.Context) (ok bool, err error) {
		said, err = b.fleet.command(ctx, b.id, "diagnose", time.Minute, nil)
		if err != nil && strings.Contains(err.Error(), "FAILED interrupted") {
			err = nil // it was just doing that
		}
		return strings.Contains(said, "books encrypted"), err
	})
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, head(said))
	}
	if !strings.Contains(said, "data encrypted") {
		return fmt.Errorf("the key of the data partition is not sealed:\n%s", head(said))
	}
	if !strings.Contains(said, "PCR 11 ") || strings.Contains(said, "PCR 11 "+strings.Repeat("0", 64)) {
		return fmt.Errorf("PCR 11 is not quoted:\n%s", head(said))
	}
	m := listens.FindStringSubmatch(said)
	if m == nil {
		return fmt.Errorf("the till does not say what listens:\n%s", head(said))
	}
	note("listening", m[1])
	for at := range strings.SplitSeq(m[1], ", ") {
		// The client of DHCP is told what comes to its port, and the firewall lets nothing else in.
		if at != "nothing" && !strings.Contains(at, " 127.0.0.1:") {
			return fmt.Errorf("something listens: %s", m[1])
		}
	}
	if out := kernelSays.FindString(printable(b.serial.from(0))); out != "" {
		return fmt.Errorf("the serial line of a till without console says %q", out)
	}
	return nil
}

// agentUpdate brings in another agent alone, into a slot on the data partition;
// the golden one stays in the image.
func agentUpdate(ctx context.Context, b *till, note func(string, any)) error {
	next := filepath.Join(*binFlag, "next", "tillward-agent")
	out, err := exec.CommandContext(ctx, next, "-version").Output()
	if err != nil {
		return fmt.Errorf("%s: %w; make build makes it", next, err)
	}
	version := strings.TrimSpace(string(out))
	b.building.Lock() // who signs does it alone
	err = b.sign(ctx, "release", "--binary", next, "--version", version)
	b.building.Unlock()
	if err != nil {
		return err
	}
	if err := b.roll(ctx, "agent/"+version); err != nil {
		return err
	}
	if _, err := b.fleet.untilPart(ctx, b.rollout, b.id, "committed", 3*time.Minute, func(e execution) bool { return e.State == "SUCCEEDED" }); err != nil {
		return err
	}
	d, err := b.on(ctx, "runs the other agent", 2*time.Minute, func(d device) bool { return d.AgentVersion == version && d.Trust == "attested" })
	note("agent", d.AgentVersion)
	return err
}

// update brings the second release in by a rollout.
func update(ctx context.Context, b *till, note func(string, any)) error {
	if err := b.offer(ctx, second); err != nil {
		return err
	}
	return b.committed(ctx, note, second, 7*time.Minute)
}

// committed waits until a release that was offered is the one that runs.
func (b *till) committed(ctx context.Context, note func(string, any), version string, within time.Duration) error {
	e, err := b.fleet.untilPart(ctx, b.rollout, b.id, "committed", within, func(e execution) bool { return e.State == "SUCCEEDED" })
	if err != nil {
		return err
	}
	if e.Total > 0 {
		note("fetched MiB", fmt.Sprintf("%.1f of %.1f", float64(e.Bytes.Wire)/mib, float64(e.Total)/mib))
	}
	d, err := b.on(ctx, "is attested as "+version, 2*time.Minute, func(d device) bool { return d.Trust == "attested" && d.BootRelease == system+"/"+version })
	if err != nil {
		return err
	}
	if len(d.Findings) != 0 || !d.AuditOK {
		return fmt.Errorf("findings %+v, audit %v", d.Findings, d.AuditOK)
	}
	return b.untilRuns(ctx, note, version)
}

// failing brings in a release that must not stay, and expects the till back on
// the second one, by itself.
func failing(ctx context.Context, b *till, note func(string, any), version string, within time.Duration) error {
	seen := b.events()
	if err := b.offer(ctx, version); err != nil {
		return err
	}
	e, err := b.fleet.untilPart(ctx, b.rollout, b.id, "over", within, execution.ended)
	if err != nil {
		return err
	}
	note("end", strings.TrimSpace(e.State+" "+e.Reason))
	if e.State != "ROLLED_BACK" && e.State != "FAILED" {
		return fmt.Errorf("the update ended as %+v", e)
	}
	if _, err := b.on(ctx, "is back", 2*time.Minute, func(d device) bool { return d.Trust == "attested" && d.BootRelease == system+"/"+second && d.AuditOK }); err != nil {
		return err
	}
	if err := b.untilRuns(ctx, note, second); err != nil {
		return err
	}
	happened := b.events()[len(seen):]
	note("events", strings.Join(happened, " "))
	resets := 0
	for _, h := range happened {
		if h == "RESET" {
			resets++
		}
	}
	if resets < 2 {
		return fmt.Errorf("the machine was reset %d times, want into the new slot and back: %q", resets, happened)
	}
	if version == hangs && !slices.Contains(happened, "WATCHDOG") {
		return fmt.Errorf("the watchdog did nothing: %q", happened)
	}
	return nil
}

// powerCuts cuts the power while the second release is written, again and again,
// and lets it come to its end at last.
func powerCuts(ctx context.Context, b *till, note func(string, any)) error {
	image, err := b.offered(ctx, second)
	if err != nil {
		return err
	}
	// What has to be written: the rest of the EFI partition is empty. A block that
	// a cut left where it belongs is not written again.
	var left int64
	for _, f := range []string{image.RootFS, image.UKI} {
		fi, err := os.Stat(f)
		if err != nil {
			return err
		}
		left += fi.Size()
	}
	if err := b.offer(ctx, second); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(*seedFlag, 7))
	var at []string
	for i := range *cutsFlag {
		_, err := b.fleet.untilPart(ctx, b.rollout, b.id, "being written", 4*time.Minute, func(e execution) bool { return e.State == "INSTALLING" })
		if err != nil {
			return fmt.Errorf("cut %d: %w", i+1, err)
		}
		before, _, err := b.fleet.device(ctx, b.id)
		if err != nil {
			return err
		}
		after := r.Int64N(2 * left / int64(*cutsFlag-i+1))
		left -= after
		at = append(at, fmt.Sprintf("%.1f", float64(after)/mib))
		if err := b.machine.KillAfter(after); err != nil {
			return err
		}
		if err := b.dies(ctx); err != nil {
			return fmt.Errorf("cut %d, %d bytes into the writing: %w", i+1, after, err)
		}
		if err := b.power(); err != nil {
			return err
		}
		_, err = b.on(ctx, fmt.Sprintf("boots after cut %d", i+1), 4*time.Minute, func(d device) bool {
			return d.Trust == "attested" && d.ResetCount > before.ResetCount && d.AuditOK && d.BootRelease == system+"/"+b.flash
		})
		if err != nil {
			return fmt.Errorf("cut %d, %d bytes into the writing: %w", i+1, after, err)
		}
	}
	note("cut at MiB", strings.Join(at, " "))
	return b.committed(ctx, note, second, 6*time.Minute)
}

// dies waits for a power cut that was ordered.
func (b *till) dies(ctx context.Context) error {
	gone := make(chan error, 1)
	go func() { gone <- b.machine.Wait() }()
	select {
	case err := <-gone:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(4 * time.Minute * time.Duration(*slowFlag)):
		return errors.New("it has not written so much in 4 minutes")
	}
}

// stick plugs in a stick that says how the network is. The till takes that over
// while it runs.
func stick(ctx context.Context, b *till, note func(string, any)) error {
	const address = "10.0.2.77" // no address that its DHCP gives
	file, image := filepath.Join(b.dir, "tillward-network.conf"), filepath.Join(b.dir, "stick.img")
	err := errors.Join(
		os.WriteFile(file, []byte("# till 2\r\naddress = "+address+"/24\r\ngateway = 10.0.2.2\r\n"), 0o600),
		os.WriteFile(image, make([]byte, 4*mib), 0o600),
	)
	if err != nil {
		return err
	}
	if _, err := guest.Command(ctx, "", "mkfs.vfat", image); err != nil {
		return err
	}
	if err := mcopy(ctx, image, file, "::"); err != nil {
		return err
	}
	if _, err := b.on(ctx, "is attested", 2*time.Minute, func(d device) bool { return d.Trust == "attested" }); err != nil {
		return err
	}
	if err := b.machine.Plug(ctx, image); err != nil {
		return err
	}
	return b.fleet.Until(ctx, "it speaks from "+address+" alone", func(ctx context.Context) (bool, error) {
		said, err := b.machine.Connections(ctx)
		d, _, derr := b.fleet.device(ctx, b.id)
		if err := errors.Join(err, derr); err != nil {
			return false, err
		}
		note("device", map[bool]string{true: "on line", false: "off line"}[d.Online])
		return d.Online && d.Trust == "attested" && speaksFrom(said, address), nil
	})
}

// speaksFrom reports whether there are connections and all are from an address.
func speaksFrom(said, address string) bool {
	n := 0
	for line := range strings.Lines(said) {
		if !strings.Contains(line, "[ESTABLISHED]") {
			continue
		}
		if n++; !strings.Contains(line, " "+address+" ") {
			return false
		}
	}
	return n > 0
}

// factoryReset makes the till new by a command.
func factoryReset(ctx context.Context, b *till, _ func(string, any)) error {
	return b.renewed(ctx, func(ctx context.Context) error {
		return b.fleet.Until(ctx, "it takes the command", func(ctx context.Context) (bool, error) {
			_, err := b.fleet.command(ctx, b.id, "factory-reset", time.Minute, map[string]string{"device": b.id})
			if err != nil && strings.Contains(err.Error(), "ask again") {
				return false, nil // just started, it does not know yet that no update is on trial
			}
			return err == nil, err
		})
	})
}

// resetButton makes the till new by its button, which is held while it starts.
func resetButton(ctx context.Context, b *till, _ func(string, any)) error {
	return b.renewed(ctx, func(ctx context.Context) error {
		if err := b.machine.Kill(); err != nil {
			return err
		}
		at := b.serial.len()
		if err := b.power(); err != nil {
			return err
		}
		return b.fleet.Until(ctx, "the button was held long enough", func(ctx context.Context) (bool, error) {
			return strings.Contains(b.serial.from(at), "the reset button was held"), b.machine.Press(ctx, "power")
		})
	})
}

// renewed expects the till to give up what it knew when that is asked for, and to
// enrol again, by its TPM.
func (b *till) renewed(ctx context.Context, ask func(context.Context) error) error {
	before, _, err := b.fleet.device(ctx, b.id)
	if err != nil {
		return err
	}
	enrolled, err := b.happened(ctx, "enrol.done")
	if err != nil {
		return err
	}
	if err := ask(ctx); err != nil {
		return err
	}
	_, err = b.on(ctx, "is there again", 4*time.Minute, func(d device) bool {
		return d.Trust == "attested" && d.ResetCount > before.ResetCount && d.Samples > before.Samples
	})
	if err != nil {
		return err
	}
	return b.fleet.Until(ctx, "it has enrolled once more", func(ctx context.Context) (bool, error) {
		again, err := b.happened(ctx, "enrol.done")
		return again > enrolled, err
	})
}
