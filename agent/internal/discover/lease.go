package discover

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// errSilent is a lease without the option.
var errSilent = errors.New("the lease does not name a service")

// The option's value as each DHCP client leaves it, in hexadecimal.
//
// systemd-networkd keeps none of the options it does not know but the private
// ones, so for it the same value goes into option 224 as well.
var (
	networkd = regexp.MustCompile(`^OPTION_(?:143|224)=(.*)$`)
	udhcpc   = regexp.MustCompile(`^sztp=(.*)$`)
	dhclient = regexp.MustCompile(`^option (?:sztp-redirect|unknown-143) (.*);$`)
)

// readLease takes the service from a DHCP lease: the first address of the list
// that can be one. It leaves name and claim code as they are.
func readLease(s *Service, b []byte) error {
	value, ok := option(string(b))
	if !ok {
		return errSilent
	}
	raw, err := octets(value)
	if err != nil {
		return err
	}
	list, err := redirects(raw)
	if err != nil {
		return err
	}
	var wrong []error
	for _, uri := range list {
		enrol, err := address(uri)
		if err == nil {
			s.Enrol = enrol
			return nil
		}
		wrong = append(wrong, fmt.Errorf("DHCP option 143: %w", err))
	}
	return errors.Join(wrong...)
}

// option returns the text of the option in the newest lease of a file.
func option(lease string) (value string, ok bool) {
	for line := range strings.Lines(lease) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "lease ") || line == "lease{" { // dhclient appends; the last one counts
			value, ok = "", false
		}
		for _, form := range []*regexp.Regexp{networkd, udhcpc, dhclient} {
			if m := form.FindStringSubmatch(line); m != nil {
				value, ok = strings.TrimSpace(m[1]), true
			}
		}
	}
	return value, ok && value != ""
}

// octets reads "001a68..." and dhclient's "0:1a:68:...".
func octets(s string) ([]byte, error) {
	if strings.Contains(s, ":") {
		parts := strings.Split(s, ":")
		for i, p := range parts {
			if len(p) == 1 {
				parts[i] = "0" + p
			} else if len(p) != 2 {
				return nil, errors.New("DHCP option 143 is not hexadecimal: let the DHCP client write it as bytes")
			}
		}
		s = strings.Join(parts, "")
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, errors.New("DHCP option 143 is not hexadecimal: let the DHCP client write it as bytes")
	}
	return b, nil
}

// redirects decodes OPTION_V4_SZTP_REDIRECT: URIs, each behind its length in
// two bytes [RFC 8572, 8.3]. One that does not come out even is refused whole.
func redirects(b []byte) ([]string, error) {
	var list []string
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, errors.New("DHCP option 143 is cut off within a length: each URI goes behind its length in two bytes")
		}
		n := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		switch {
		case n == 0:
			return nil, errors.New("DHCP option 143 has an empty URI: each goes behind its length in two bytes")
		case n > len(b):
			return nil, fmt.Errorf("DHCP option 143 is cut off: a URI should have %d bytes, %d are there", n, len(b))
		case len(list) == maxFiles:
			return nil, fmt.Errorf("DHCP option 143 has more than %d URIs", maxFiles)
		}
		list, b = append(list, string(b[:n])), b[n:]
	}
	if len(list) == 0 {
		return nil, errors.New("DHCP option 143 is empty: put the URI of the service behind its length in two bytes")
	}
	return list, nil
}
