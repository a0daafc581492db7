package board

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"periph.io/x/conn/v3"
	"periph.io/x/conn/v3/physic"
)

// chip is what is known of a kind of chip.
type chip struct {
	sensor string
	stat   string
	low    bool // too little is what is bad
	read   func(conn.Conn) (float64, error)
}

var chips = map[string]chip{
	"lm75":   {sensor: "M_TempHigh", stat: "temp_mc", read: temperature(lm75)},
	"tmp102": {sensor: "M_TempHigh", stat: "temp_mc", read: temperature(tmp102)},
	"ina219": {sensor: "M_SupplyLow", stat: "supply_mv", low: true, read: ina219},
}

func chipNames() []string { return slices.Sorted(maps.Keys(chips)) }

var (
	errAsleep = errors.New("the chip is asleep")
	errBus    = errors.New("that is what a bus without a chip says")
)

// register reads one register of two bytes.
func register(c conn.Conn, n byte) (uint16, error) {
	var b [2]byte
	if err := c.Tx([]byte{n}, b[:]); err != nil {
		return 0, fmt.Errorf("register %d: %w", n, err)
	}
	v := binary.BigEndian.Uint16(b[:])
	if v == 0xffff {
		return 0, fmt.Errorf("register %d: %w", n, errBus)
	}
	return v, nil
}

// temperature reads register 0 of a thermometer, in 1/1000 degree Celsius.
func temperature(decode func(uint16) physic.Temperature) func(conn.Conn) (float64, error) {
	return func(c conn.Conn) (float64, error) {
		v, err := register(c, 0)
		if err != nil {
			return 0, err
		}
		t := decode(v) - physic.ZeroCelsius
		if t < -55*physic.Kelvin || t > 150*physic.Kelvin {
			return 0, fmt.Errorf("%w: %s", errBus, t)
		}
		return float64(t / physic.MilliKelvin), nil
	}
}

// lm75 reads 9 bits; what the others say is not defined [LM75, Temperature
// register].
func lm75(v uint16) physic.Temperature {
	return physic.ZeroCelsius + physic.Temperature(int16(v)>>7)*(physic.Kelvin/2) // #nosec G115 -- two's complement
}

// tmp102 reads 12 bits, or 13 where the last one says so [TMP102, Temperature
// register].
func tmp102(v uint16) physic.Temperature {
	bits := 4
	if v&1 != 0 { // extended mode
		bits = 3
	}
	return physic.ZeroCelsius + physic.Temperature(int16(v)>>bits)*(physic.Kelvin/16) // #nosec G115 -- two's complement
}

// ina219 reads the bus voltage in millivolts [INA219, registers 0 and 2].
func ina219(c conn.Conn) (float64, error) {
	mode, err := register(c, 0)
	if err != nil {
		return 0, err
	}
	if mode&6 != 6 { // the voltage is not measured again and again
		return 0, errAsleep
	}
	v, err := register(c, 2)
	if err != nil {
		return 0, err
	}
	u := physic.ElectricPotential(v>>3) * 4 * physic.MilliVolt
	return float64(u / physic.MilliVolt), nil
}
