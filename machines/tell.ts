/** Params of the effect `tell`, which every machine may ask for: deliver `event` to the local actor `to`. */
export type Tell = { to: string; event: { type: string } };
