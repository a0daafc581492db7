package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/tillward/tillward/cloud/internal/fleet"
)

type bootKey struct {
	device fleet.DeviceID
	boot   [16]byte
}

type seriesKey struct {
	device           fleet.DeviceID
	peripheral, name string
}

const maxRemembered = 100_000 // ids of boots and series kept in memory

// boot returns the id of one run of a device's agent.
func (w *writer) boot(ctx context.Context, device fleet.DeviceID, name [16]byte) (int64, error) {
	k := bootKey{device, name}
	if id, ok := w.boots[k]; ok {
		return id, nil
	}
	var id int64
	err := found(w.row(ctx, `SELECT id FROM boot WHERE device = ? AND name = ?`, device, name[:]).Scan(&id))
	if errors.Is(err, fleet.ErrNotFound) {
		err = w.row(ctx, `INSERT INTO boot (device, name) VALUES (?, ?) RETURNING id`, device, name[:]).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("boot: %w", err)
	}
	if len(w.boots) >= maxRemembered {
		w.forget()
	}
	w.boots[k] = id
	return id, nil
}

// seriesID returns the id of one measured quantity of a device.
func (w *writer) seriesID(ctx context.Context, device fleet.DeviceID, peripheral, name string) (int64, error) {
	k := seriesKey{device, peripheral, name}
	if id, ok := w.series[k]; ok {
		return id, nil
	}
	var id int64
	err := found(w.row(ctx, `SELECT id FROM series WHERE device = ? AND peripheral = ? AND name = ?`, device, peripheral, name).Scan(&id))
	if errors.Is(err, fleet.ErrNotFound) {
		err = w.row(ctx, `INSERT INTO series (device, peripheral, name) VALUES (?, ?, ?) RETURNING id`, device, peripheral, name).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("series: %w", err)
	}
	if len(w.series) >= maxRemembered {
		w.forget()
	}
	w.series[k] = id
	return id, nil
}
