// Command tillward-firmware builds an image of the emulated till from a vendor's
// folder and boots it, with the serial line on standard output; see package
// firmware and docs/firmware-test.md. It never ships.
//
// With -image it is an image of Buildroot's: with a vendor's folder one that is
// made of it, without one its own disk as it is.
//
// With -observe it boots the observer in place of an image, and leaves its event
// log and its program in the folder: the base log of a vendor's folder.
//
// Exit codes: 0 the till was switched off, 1 something went wrong, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tillward/tillward/simulator/firmware"
	"github.com/tillward/tillward/simulator/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx))
}

func run(ctx context.Context) int {
	o := firmware.Options{Say: os.Stderr}
	s := firmware.Spec{Console: true}
	m := firmware.MachineOptions{Serial: os.Stdout, Keyboard: os.Stdin}
	flag.StringVar(&o.Source, "source", ".", "`folder` of the module")
	flag.StringVar(&o.Cache, "cache", ".cache/firmware", "`folder` for what is downloaded")
	flag.StringVar(&o.Bin, "bin", "bin", "`folder` of tillward-agent and tillward-provision")
	flag.StringVar(&o.Image, "image", "", "`folder` of an image of Buildroot's")
	flag.StringVar(&s.Vendor, "vendor", "", "the vendor's `folder`")
	flag.StringVar(&s.Version, "version", "0.1.0", "of the image")
	flag.StringVar(&s.Model, "model", "tillward-sim-1", "of the box")
	flag.StringVar(&s.Compatible, "compatible", "tillward-sim", "of the image")
	flag.BoolVar(&s.Console, "console", true, "a shell on the serial line")
	flag.StringVar(&m.Stick, "stick", "", "image `file` of a USB stick")
	dir := flag.String("dir", "", "`folder` of the till; one that is there is switched on again as it is")
	observe := flag.Bool("observe", false, "boot the observer")
	limit := flag.Duration("for", time.Hour, "switch off after this time")
	flag.Parse()
	if flag.NArg() > 0 || *dir == "" || (s.Vendor == "" && o.Image == "" && !*observe) {
		flag.Usage()
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	if err := boot(ctx, o, s, m, *dir, *observe); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(os.Stderr, "tillward-firmware: %v\n", err)
		return 1
	}
	return 0
}

func boot(ctx context.Context, o firmware.Options, s firmware.Spec, m firmware.MachineOptions, dir string, observe bool) error {
	k, err := firmware.Open(ctx, o)
	if err != nil {
		return err
	}
	if observe {
		seen, err := k.Observe(ctx, dir, m)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "observer.log"), seen.Log, 0o600)
	}
	m.Disk = filepath.Join(dir, "disk.img")
	if _, err := os.Stat(m.Disk); err != nil {
		if err := flash(ctx, k, s, dir); err != nil {
			return err
		}
	}
	stamp := &firmware.Stamped{Out: m.Serial}
	m.Serial = stamp
	till := k.Machine(dir, m)
	stamp.CPU = till.CPU
	if err := till.Start(ctx); err != nil {
		return err
	}
	began := time.Now()
	go func() {
		for e := range till.Events() {
			fmt.Fprintf(os.Stderr, "tillward-firmware: %s %s%s after %.1f s, %.1f s of CPU\n", e.Name, e.Reason, e.Action, time.Since(began).Seconds(), till.CPU().Seconds())
		}
	}()
	return till.Wait()
}

// flash makes the disk of a till.
func flash(ctx context.Context, k *firmware.Kit, s firmware.Spec, dir string) error {
	if s.Vendor == "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		_, err := guest.Command(ctx, "", "cp", "--sparse=always", filepath.Join(k.Given.Dir, "disk.img"), dir)
		return err
	}
	image, err := k.Build(ctx, s, dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "tillward-firmware: built in %v\n", image.Seconds)
	return nil
}
