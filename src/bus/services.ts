/** The services of the bus's thread by their names. */
import { makeCommandService } from './commandService.ts';
import { makeLogService } from './logService.ts';
import { configService } from './configService.ts';
import type { MakeService } from './service.ts';

export const services: Record<string, MakeService> = {
  command: makeCommandService,
  config: configService,
  log: makeLogService,
};
