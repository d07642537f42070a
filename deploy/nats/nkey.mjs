// Prints a new nkey for a user: its seed, which is the secret, and its public key.
import { nkeys } from '@nats-io/transport-node';

const user = nkeys.createUser();
console.log(`${new TextDecoder().decode(user.getSeed())} ${user.getPublicKey()}`);
