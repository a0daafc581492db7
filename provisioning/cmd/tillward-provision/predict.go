package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tillward/tillward/provisioning/boot"
	"github.com/tillward/tillward/provisioning/uki"
)

type bootPredict struct {
	bootObserve
	Was       string `required:"" help:"The unified kernel image that left the log." placeholder:"FILE"`
	UKI       string `name:"uki" required:"" help:"The unified kernel image that will be booted instead." placeholder:"FILE"`
	Failed    int    `help:"Entries of the boot menu that the firmware tries in vain before it comes to the image: another slot that cannot be loaded." placeholder:"N"`
	Predicted string `help:"Where to write the log that a boot of it will leave, with the SHA-256 bank alone: what boot approve signs the state of." placeholder:"FILE"`
}

// Run implements the command.
func (c *bootPredict) Run(o *out) error {
	if c.Failed < 0 {
		return usage{errors.New("--failed: not below 0")}
	}
	r, err := c.begin()
	if err != nil {
		return err
	}
	raw, values, _, err := c.read()
	if err != nil {
		return err
	}
	if len(values) < len(boot.Quoted) {
		return usage{errors.New("--pcrs: no value of PCR 11, which the image is measured into: read it with the others")}
	}
	was, err := readUKI(c.Was)
	if err != nil {
		return err
	}
	is, err := readUKI(c.UKI)
	if err != nil {
		return err
	}
	list, err := swaps(was, is)
	if err != nil {
		return fmt.Errorf("%s in the place of %s: %w", c.UKI, c.Was, err)
	}
	if raw, err = boot.Translate(raw, list, c.Failed); err != nil {
		return fmt.Errorf("%s, as a boot of %s: %w", c.Log, c.Was, err)
	}
	if values, err = boot.Replay(raw); err != nil {
		return err
	}
	events, err := boot.ParseLog(raw, values)
	if err != nil {
		return err
	}
	if c.Predicted != "" {
		if err := replace(c.Predicted, raw); err != nil {
			return err
		}
	}
	return c.write(o, r, raw, values, events)
}

// swaps pairs what two images measure. They must be measured alike: by the same
// stub, in the same sections.
func swaps(was, is uki.Image) ([]boot.Swap, error) {
	if was.Machine != is.Machine || !was.SameStub(is) {
		return nil, fmt.Errorf("they have not the same stub (%s, %s), and another may measure otherwise: boot one with the new stub, and observe that", was.Stub, is.Stub)
	}
	a, b := was.Measurements(), is.Measurements()
	same := func(a, b uki.Measurement) bool { return a.PCR == b.PCR && a.What == b.What }
	if !slices.EqualFunc(a, b, same) {
		return nil, errors.New("they have not the same sections: boot one with these sections, and observe that")
	}
	var list []boot.Swap
	for i, m := range a {
		list = append(list, boot.Swap{PCR: m.PCR, What: m.What, Was: m.Digests, Is: b[i].Digests, Always: m.Always})
	}
	return list, nil
}
