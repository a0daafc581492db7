package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tillward/tillward/hal"
)

// CheckConfig reads a file as LoadConfig does, and returns everything that is
// wrong with it: also what the drivers will refuse of the devices, and what two
// of them cannot have at once. That is for whoever writes the file. An agent
// that is started with it only tells of such a device, because the till has to
// go on selling with the others. No hardware is looked at.
func CheckConfig(path string, drivers *hal.Registry) (Config, []error) {
	cfg, err := LoadConfig(path)
	wrong := each(err)
	for _, err := range cfg.checkDevices(drivers) {
		wrong = append(wrong, fmt.Errorf("%s: %w", path, err))
	}
	return cfg, wrong
}

// each takes apart what was told as one.
func each(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// checkDevices says what is wrong with the devices, beside what validate says.
func (c Config) checkDevices(drivers *hal.Registry) (wrong []error) {
	var places []place
	var id string
	refuse := func(format string, args ...any) {
		wrong = append(wrong, fmt.Errorf("device %q: %w", id, fmt.Errorf(format, args...)))
	}
	for _, d := range c.Devices {
		id = d.ID
		for _, as := range []string{d.Print, d.PrintProof} {
			p := place{spell(as), as, "", fmt.Sprintf("the print socket of device %q", d.ID)}
			if i := slices.IndexFunc(places, p.fits); i >= 0 && places[i].as != as { // the same words validate tells
				refuse("print socket %q is %s too, which calls it %q", as, places[i].whose, places[i].as)
			}
			places = append(places, p)
		}
	}
	for _, d := range c.Devices {
		id = d.ID
		whole, faults := d.check(drivers)
		for _, err := range faults {
			refuse("%w", err)
		}
		if k := whole.Category; k != "" && k != hal.POSPrinter && d.Print+d.PrintProof != "" {
			refuse("print and print_proof are of a printer; a %s has none", k)
		}
		if whole.Claim != hal.Own {
			continue
		}
		whose := fmt.Sprintf("device %q", d.ID)
		mine := []place{{spell(whole.Key), d.Address, d.held(), whose}, {spell(d.Address), d.Address, d.held(), whose}}
		told := func(p place) bool { return d.held() != "" && p.held == d.held() }
		if i := slices.IndexFunc(places, func(p place) bool { return (p.fits(mine[0]) || p.fits(mine[1])) && !told(p) }); i >= 0 {
			refuse("address %q is that of %s too; only one can own it", d.Address, places[i].whose)
		}
		places = append(places, mine...)
	}
	return wrong
}

// check asks the driver what is wrong with the device, and else what it is. What
// validate tells already is left out.
func (d DeviceConfig) check(drivers *hal.Registry) (whole hal.Info, wrong []error) {
	cfg := hal.Config{ID: d.ID, Address: d.Address, Claim: hal.Claim(d.Claim), Options: d.Options}
	if !d.claimed() {
		cfg.Claim = ""
	}
	whole = hal.Info{Claim: cfg.Claim, Key: cfg.Address}
	if d.Driver == "" {
		return whole, nil
	}
	var infos []hal.Info
	err := contained(func() (err error) {
		infos, err = drivers.Check(d.Driver, cfg)
		return err
	})
	var coded *hal.Error
	if errors.As(err, &coded) && coded.Err != nil {
		err = coded.Err // code and operation say nothing to whoever writes the file
	}
	if len(infos) > 0 {
		whole = infos[0]
	}
	return whole, each(err)
}

// place is where only one can be, as the file has it, and whose it is; held is
// set of a device.
type place struct{ at, as, held, whose string }

// fits reports whether both may be the same place. A kind of USB device is
// everywhere that one of them is.
func (p place) fits(q place) bool {
	kind := func(a, b string) bool {
		rest, ok := strings.CutPrefix(a, b)
		return ok && rest != "" && strings.HasPrefix(b, "usb:") && (rest[0] == ':' || rest[0] == '@')
	}
	return p.at != "" && (p.at == q.at || kind(p.at, q.at) || kind(q.at, p.at))
}

// spell writes a place in the network in one way only.
func spell(at string) string {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(at, "tcp:"))
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		return at
	}
	host = strings.ToLower(host)
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return "tcp:" + net.JoinHostPort(host, strconv.FormatUint(n, 10))
}
